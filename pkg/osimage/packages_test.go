package osimage

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestComparePackages(t *testing.T) {
	from := []Package{{"zlib", "1"}, {"gone", "1"}, {"same", "2"}, {"libc", "2"}, {"libc", "1"}, {"both", "1"}, {"both", "1"}}
	to := []Package{{"same", "2"}, {"zlib", "2"}, {"libc", "1"}, {"libc", "3"}, {"both", "1"}, {"added", "1"}}
	want := []PackageChange{{"added", "", "1"}, {"gone", "1", ""}, {"libc", "1, 2", "1, 3"}, {"zlib", "1", "2"}}
	if diff := cmp.Diff(want, ComparePackages(from, to)); diff != "" {
		t.Error(diff)
	}
	if got := ComparePackages(to, to); len(got) != 0 {
		t.Errorf("an image differs from itself in %v", got)
	}
}
