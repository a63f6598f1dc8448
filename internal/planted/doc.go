// Package planted shows that the tests find bugs: it plants some, one at a time,
// each of a kind that has lost data in real storage, and has tests look for it. It
// has no code outside its tests.
//
// Nouns: a bug is a piece of a source file and what stands there instead; a check is
// a test that is to fail with it. The file is replaced for the compiler alone (go's
// -overlay), so that nothing of this is in the program, whatever its build tags.
//
// TestBugsApply, which is quick, fails when the text that a bug replaces is not in its
// file any more: who changes that text says what the bug is now. TestBugsCaught runs
// with -planted REGEXP: it takes a minute for each, and prints a table of what caught
// it, for docs/reliability.md.
package planted
