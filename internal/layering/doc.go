// Package layering states which package may not import which, and why. It has
// no code outside its tests.
//
// Nouns: a rule forbids some packages of this module (From) to import some
// packages (To), for a reason that is printed with each breach. A package is
// written as its folder in the module ("internal/disk") or, for others', as its
// import path; it stands for everything below it too.
//
// Every Go file counts, whatever its build tags, and test files too: what a
// test reaches for, the code will reach for next. Rules marked Through also
// follow the imports of non-test files from package to package, so that a
// package cannot get by way of a third what it may not import itself.
//
// The sources are parsed here rather than listed by the go command, because a
// cached test result is then dropped when any of them changes.
package layering
