// Package rebuild decides how what spindles have lost is restored. It does no I/O.
//
// Nouns: a spindle is whole when it has every fragment that it should have, as far as
// that could be had. Its incarnation ([datanode.SpindleStatus]) is another one when it may
// lack some: it is then restored, in a pass, layout by layout, together with all others
// that are. A [Row] is what the registry has of it, and the state of this machine. A pass is
// shared by all hosts: its warden, who has the Row, gives each some layouts, as tasks in its [Work],
// which is a row as well, and takes note of what comes of them. A [Share] is what the warden
// knows of that.
//
// # Invariants
//
//  1. A spindle is called whole in an incarnation only when each layout that has it was
//     gone through while it served in that incarnation, and nothing was left that may
//     yet be restored.
//  2. Layouts that have lost more of each stripe are given out first, and none to two hosts.
//  3. What cannot be restored is tried again when a spindle serves that did not, and
//     now and then as long as any does not.
//  4. What comes of a task counts only while the warden has not taken it back: because
//     other spindles are to be restored, or it stood still.
//
// A Row that is older than what was done is no harm: what is restored already is seen by
// who goes through a layout again. Nothing that a Share knows is to outlive its warden: the next
// one derives it from the hosts' rows.
package rebuild
