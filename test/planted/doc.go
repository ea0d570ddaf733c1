// Package planted switches off one check of osctl at a time and holds that a test
// turns red. A check that no test misses is one that may be lost unnoticed.
//
// Each fault is a few words of one file replaced by others. The go command builds the
// package's tests with the changed file in its place (go help build, -overlay), so the
// checkout stays as it is and all else comes from the build cache. A fault whose words
// are not found any more, or that does not compile, fails: it proves nothing.
package planted
