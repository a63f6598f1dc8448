// Package logset decides how the log of a disk is kept on several data nodes: who
// of them is in sync, what becomes of one that fails or comes back, and how a new
// owner takes the log over. It does no I/O: events go in, actions come out, and
// whoever does the I/O, or a simulation, carries them out and reports what came of
// it.
//
// The log set of a disk is a row of the registry: the nodes that have all that was
// acknowledged, each with its boot id (a node that was booted anew may lack what it
// had not synced). The disk's owner alone changes it, guarded by its epoch, so a row
// needs no version at the nodes: whoever could act by an old row is fenced.
//
// A node follows when it has all that the log has, and is sent all that is added to
// it. Who follows and is not in the row yet is waited for all the same.
//
// # Invariants
//
//  1. What is acknowledged is at every node that the row names, or may name when
//     commits that are in doubt come late, but for those booted anew since (I2).
//  2. An owner fences before it reads the row, and takes the log over where it reached
//     a node of the row that was not booted anew, or all of them: an earlier owner can
//     acknowledge nothing without the node that was fenced, and change no row after it
//     was read (I5).
//  3. A node that fails is out of the row before what waits for it is acknowledged.
//  4. A node follows once it was made equal and stable while nothing was under way.
//  5. What a node has is thrown away only while no row can name it.
//
// Events may come late or never; each names what it answers, and one that answers
// nothing that is under way does nothing.
//
// Concurrency: none; who drives a Machine serialises its calls.
package logset
