package planted

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/test/need"
)

// toolPackages are those whose tests need GRUB, strace or root, and are left out of the
// short part for it.
func toolPackages() []string { return []string{"atomicfile", "boot", "disk", "etc"} }

// checkout makes a folder with all of the checkout, but for one file that has another
// text, and returns where a package's tests run in it: they find scripts by their
// relative path.
func checkout(t *testing.T, pkg, path, text string) string {
	t.Helper()
	top := t.TempDir()
	file, err := filepath.Rel(need.Top(), path)
	if err != nil {
		t.Fatal(err)
	}
	link(t, need.Top(), top, []string{file, filepath.Join("pkg", pkg)})
	if err := os.WriteFile(filepath.Join(top, file), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(top, "pkg", pkg)
}

// link makes links in one folder to all that another one has. Folders that lead to own
// are made, and own itself is left out where it is a file.
func link(t *testing.T, from, to string, own []string) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		leads, below := false, []string(nil)
		for _, path := range own {
			first, rest, more := strings.Cut(path, "/")
			leads = leads || first == e.Name()
			if more && first == e.Name() {
				below = append(below, rest)
			}
		}
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		switch {
		case !leads:
			err = os.Symlink(source, target)
		case e.IsDir():
			if err = os.Mkdir(target, 0o700); err == nil {
				link(t, source, target, below)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
