package yocto

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/test/need"
)

// TestFilesExist holds every file:// of the layer to a file: beside the recipe or, as
// OSCTL_SOURCE is in the search path, in the repository.
func TestFilesExist(t *testing.T) {
	found := 0
	for _, recipe := range recipes(t) {
		dir, name := filepath.Dir(recipe), strings.TrimSuffix(filepath.Base(recipe), filepath.Ext(recipe))
		for _, m := range regexp.MustCompile(`file://([^;"\s\\]+)`).FindAllStringSubmatch(uris(read(t, recipe)), -1) {
			found++
			places := []string{filepath.Join(dir, "files", m[1]), filepath.Join(dir, strings.TrimSuffix(name, "_osctl"), m[1]), filepath.Join(need.Top(), m[1])}
			if !slices.ContainsFunc(places, exists) {
				t.Errorf("%s names file://%s, which is nowhere", filepath.Base(recipe), m[1])
			}
		}
	}
	if found < 15 {
		t.Errorf("found %d files", found)
	}
}

// TestEveryFileIsTaken holds the recipes to the machine's files of the reference
// image: each is in the SRC_URI of one, by itself or with its folder, and the recipe
// that links to nowhere but on a machine makes those links.
func TestEveryFileIsTaken(t *testing.T) {
	var taken []string
	for _, recipe := range recipes(t) {
		for _, m := range regexp.MustCompile(`file://(images/[^;"\s\\]+)`).FindAllStringSubmatch(uris(read(t, recipe)), -1) {
			taken = append(taken, m[1])
		}
	}
	links := read(t, layer("recipes-core/osctl/osctl.bb")) + read(t, layer("recipes-core/osctl-conf/osctl-conf.bb"))
	found := 0
	err := filepath.WalkDir(filepath.Join(need.Top(), "images/rootfs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		found++
		name, err := filepath.Rel(need.Top(), path)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(taken, func(have string) bool { return name == have || strings.HasPrefix(name, have+"/") }) {
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s leads nowhere, so bitbake warns of it: let the recipe make the link", name)
			}
			return nil
		}
		if to, err := os.Readlink(path); err != nil || !strings.Contains(links, "ln -s "+to+" ") {
			t.Errorf("no recipe has %s", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 25 {
		t.Errorf("found %d files", found)
	}
}

// uris is what a recipe adds to SRC_URI.
func uris(text string) string {
	var b strings.Builder
	for _, m := range regexp.MustCompile(`(?s)SRC_URI \+?= "(.*?)"\n`).FindAllStringSubmatch(text, -1) {
		b.WriteString(m[1] + " ")
	}
	return b.String()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// TestNothingTwice holds the layer to what is its own: no file of the layer has the
// content of one of the repository.
func TestNothingTwice(t *testing.T) {
	have := map[string]string{}
	for _, top := range []string{"images", "policy"} {
		err := filepath.WalkDir(filepath.Join(need.Top(), top), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				have[read(t, path)] = path
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(layer(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if other := have[read(t, path)]; other != "" {
				t.Errorf("%s is a copy of %s", path, other)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
