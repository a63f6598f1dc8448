// Package reclaim decides which segments are emptied, copies what lives in them,
// and says how fast.
//
// Nouns: a segment's use is the share of the space it takes on spindles that its
// live chunks would take anew. A source is a segment that is being emptied, a
// target one that its chunks go to. A cycle passes over disks, plans, condemns
// sources, copies their live chunks and records where these went; the passes of
// the next cycle patch the maps, and then the sources are free.
//
// # Invariants
//
//  1. Decisions are pure: [Decide] and [Rate] turn a state into a plan or a figure
//     and do nothing. A dry run is the same plan, not executed.
//  2. A plan gains space: what its sources take is more than what their live
//     chunks take in targets, and the targets fit in what is free meanwhile.
//  3. Only sealed chunks that open are copied, and they are copied as they are
//     (I9): nothing bad becomes good by moving it.
//  4. A source is condemned, stably, before what it holds is read: from then on
//     what its disks hold of it only shrinks. Targets are stable and known before
//     any forward names them, and all that goes into one is recorded in one step.
//  5. Whatever ends a move leaves a leak at most: a source that stays condemned is
//     taken first by the next plan, a target without forwards is let go of.
//
// # What it does not do
//
// It patches no map and clears no list of a disk: their owners do, as they pass.
package reclaim
