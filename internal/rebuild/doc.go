// Package rebuild decides how what spindles have lost is restored. It does no I/O.
//
// Nouns: a spindle is whole when it has every fragment that it should have, as far as
// that could be had. Its incarnation ([datanode.SpindleStatus]) is another one when it may
// lack some: it is then restored, in a pass, layout by layout, together with all others
// that are. A [Row] is what the registry has of it, and the state of this machine.
//
// # Invariants
//
//  1. A spindle is called whole in an incarnation only when each layout that has it was
//     gone through while it served in that incarnation, and nothing was left that may
//     yet be restored.
//  2. Layouts that have lost more of each stripe come first.
//  3. What cannot be restored is tried again when a spindle serves that did not, and
//     now and then as long as any does not.
//
// A row that is older than what was done is no harm: what is restored already is seen by
// who goes through a layout again.
package rebuild
