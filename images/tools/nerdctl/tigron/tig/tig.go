// Package tig stands in for the package of the same path in nerdctl's nested
// test module, which the module proxy does not serve.
//
// nerdctl's command imports it by way of a file of test support that no build
// tag excludes; nothing of it runs. Only the one type that the import needs is
// here.
package tig

// T is the part of [testing.TB] that nerdctl's test support calls.
type T interface {
	Helper()
	FailNow()
	Fail()
	Log(args ...any)
	Name() string
	TempDir() string
	Cleanup(fn func())
}
