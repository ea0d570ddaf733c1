package probe

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/health"
)

// folders makes greenboot's folders: "image/…" and "etc/…" are files with their
// content; one that begins with #! may be executed, one that begins with -> is a link.
func folders(t *testing.T, files map[string]string) []string {
	t.Helper()
	top := t.TempDir()
	for name, content := range files {
		path := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		var err error
		if to, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(content), mode) // #nosec some are to be run
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return []string{filepath.Join(top, "image"), filepath.Join(top, "etc")}
}

// TestScripts holds greenboot's conventions.
func TestScripts(t *testing.T) {
	dirs := folders(t, map[string]string{
		"image/check/required.d/20_second.sh":  "exit 0",
		"image/check/required.d/10_first.sh":   "exit 0",
		"image/check/required.d/30_program":    "#!/bin/sh\n",
		"image/check/required.d/40_replaced":   "#!/bin/sh\n",
		"image/check/required.d/50_masked.sh":  "exit 0",
		"image/check/required.d/60_empty.sh":   "exit 0",
		"image/check/required.d/70_off.sh":     "exit 0",
		"image/check/required.d/README":        "no program",
		"image/check/required.d/.hidden.sh":    "exit 0",
		"image/check/required.d/deep/00_in.sh": "exit 0",
		"etc/check/required.d/05_own.sh":       "exit 0",
		"etc/check/required.d/40_replaced":     "#!/bin/sh\n",
		"etc/check/required.d/50_masked.sh":    "->/dev/null",
		"etc/check/required.d/60_empty.sh":     "",
		"etc/check/wanted.d/10_first.sh":       "exit 0",
		"image/elsewhere":                      "#!/bin/sh\n",
		"etc/green.d/90_link":                  "->../../image/elsewhere",
	})
	bash, err := lookUp("bash")
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string][]string{
		RequiredDir: {
			bash + " " + dirs[0] + "/check/required.d/10_first.sh", bash + " " + dirs[0] + "/check/required.d/20_second.sh",
			dirs[0] + "/check/required.d/30_program", bash + " " + dirs[1] + "/check/required.d/05_own.sh", dirs[1] + "/check/required.d/40_replaced",
		},
		WantedDir: {bash + " " + dirs[1] + "/check/wanted.d/10_first.sh"},
		GreenDir:  {dirs[1] + "/green.d/90_link"},
		RedDir:    nil,
	} {
		list, err := Scripts(dirs, dir, []string{"70_off.sh", "unknown.sh"})
		var got []string
		for _, s := range list {
			got = append(got, strings.Join(s.Args, " "))
			if !strings.HasPrefix(s.Name, filepath.Base(dir)+"/") {
				t.Errorf("%s has the name %s", s.Args, s.Name)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", dir, err, diff)
		}
	}
	for name, content := range map[string]string{"image/check/required.d/10_gone.sh": "->/nonexistent", "image/check/required.d": "a file"} {
		if list, err := Scripts(folders(t, map[string]string{name: content}), RequiredDir, nil); err == nil || list != nil {
			t.Errorf("%s: %v, %v", name, list, err)
		}
	}
}

func TestDisabled(t *testing.T) {
	for text, want := range map[string][]string{
		"": nil,
		"GREENBOOT_MAX_BOOT_ATTEMPTS=3\nDISABLED_HEALTHCHECKS=()\n":                  nil,
		"DISABLED_HEALTHCHECKS=(\"a.sh\" 'b.sh' c)":                                  {"a.sh", "b.sh", "c"},
		"DISABLED_HEALTHCHECKS=( # why\n\t\"a.sh\"\n\n  b.sh # too\n)  # end\nX=1\n": {"a.sh", "b.sh"},
		"DISABLED_HEALTHCHECKS=(a)\nDISABLED_HEALTHCHECKS=(b);\n":                    {"b"},
		"# DISABLED_HEALTHCHECKS=(a)\n":                                              nil,
	} {
		got, err := parseDisabled(text)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"(", "=a", "+=(a)", "=($A)", "=(*.sh)", "=(\"a)", "=(a) b", "=(a", "=(a'b')", "=(a\\ b)", "=(\"`x`\")", "=('')"} {
		if got, err := parseDisabled("DISABLED_HEALTHCHECKS" + text); err == nil {
			t.Errorf("%q: %q", text, got)
		}
	}
	if _, err := Disabled(t.TempDir()); err == nil {
		t.Error("a directory was read")
	}
}

func TestTail(t *testing.T) {
	var all tail
	for range 3 {
		all.readAll(strings.NewReader(strings.Repeat("x", 1<<20) + "\nthe end\n\n"))
	}
	if len(all.kept) > tailSize || !strings.HasPrefix(all.String(), "... x") || !strings.HasSuffix(all.String(), "x / the end") || len(all.String()) > tailText+10 {
		t.Errorf("%d bytes are kept: %s", len(all.kept), all.String())
	}
	if (&tail{}).String() != "" {
		t.Error("nothing was said")
	}
}

func FuzzDisabled(f *testing.F) {
	f.Add("DISABLED_HEALTHCHECKS=(\n\t\"01_a.sh\" # why\n\tb.sh\n)\n")
	f.Add("DISABLED_HEALTHCHECKS=('a b' $c)")
	f.Fuzz(func(t *testing.T, text string) {
		names, err := parseDisabled(text)
		for _, name := range names {
			if err != nil || !plain(name) {
				t.Errorf("%q, %v", name, err)
			}
		}
	})
}

// checks runs the gate's probes once each, by name.
func checks(t *testing.T, g Greenboot) map[string]string {
	t.Helper()
	r := WithoutGroups()
	got := map[string]string{}
	for _, p := range r.Checks(g) {
		seen, ok := p.Run(t.Context())
		level := string(p.Level)
		if ok {
			level += " ok"
		}
		got[string(p.Kind)+" "+p.Name] = level + ": " + seen
		if p.Kind == health.KindScript && (!p.Once || p.Queue == "" || p.Timeout <= g.timeout()) {
			t.Errorf("%s: %+v", p.Name, p)
		}
	}
	return got
}

func TestChecks(t *testing.T) {
	dirs := folders(t, map[string]string{
		"image/check/required.d/10_good.sh": "[ \"$OSCTL_SLOT\" = B ]",
		"etc/check/required.d/20_bad.sh":    "echo no disk; exit 1",
		"etc/check/required.d/30_off.sh":    "exit 1",
		"etc/check/wanted.d/20_bad.sh":      "exit 2",
		"etc/greenboot.conf":                "DISABLED_HEALTHCHECKS=(30_off.sh)\n",
	})
	want := map[string]string{
		"script required.d/10_good.sh": "required ok: exit 0",
		"script required.d/20_bad.sh":  "required: exit 1; said: no disk",
		"script wanted.d/20_bad.sh":    "wanted: exit 2",
	}
	g := Greenboot{Folders: dirs, Env: []string{"OSCTL_SLOT=B"}}
	if diff := cmp.Diff(want, checks(t, g)); diff != "" {
		t.Errorf("checks (-want +got):\n%s", diff)
	}
	// What cannot be read is not passed over.
	broken := folders(t, map[string]string{"image/check/required.d": "", "image/check/wanted.d": "", "etc/greenboot.conf": "DISABLED_HEALTHCHECKS=$X"})
	got := checks(t, Greenboot{Folders: broken})
	for name, level := range map[string]string{"config " + RequiredDir: "required: reading the scripts", "config " + WantedDir: "wanted: ", "config greenboot.conf": "wanted: " + broken[1] + "/greenboot.conf: only"} {
		if !strings.HasPrefix(got[name], level) || len(got) != 3 {
			t.Errorf("%s: %q, want %q", name, got[name], level)
		}
	}
	if got := checks(t, Greenboot{Folders: []string{"/nonexistent"}}); len(got) != 0 {
		t.Errorf("without folders: %v", got)
	}
}

// TestAfter: all of them run in their order, and what went wrong is named.
func TestAfter(t *testing.T) {
	dirs := folders(t, map[string]string{
		"image/red.d/10_a.sh": "echo a $OSCTL_REASON >> $OUT",
		"image/red.d/20_b.sh": "echo b >> $OUT; exit 3",
		"etc/red.d/05_c.sh":   "echo c >> $OUT; sleep 1000 & exit 0",
		"etc/red.d/30_d.sh":   "echo d >> $OUT",
	})
	out := filepath.Join(t.TempDir(), "out")
	r := NewRunner()
	err := r.After(t.Context(), Greenboot{Folders: dirs, Env: []string{"OUT=" + out, "OSCTL_REASON=web: gone"}}, RedDir)
	if err == nil || err.Error() != "red.d/20_b.sh: exit 3" {
		t.Errorf("error %v", err)
	}
	text, readErr := os.ReadFile(out)
	if want := "a web: gone\nb\nc\nd\n"; readErr != nil || string(text) != want {
		t.Errorf("%q, %v; want %q", text, readErr, want)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	hang := folders(t, map[string]string{"etc/green.d/10_hang.sh": "trap '' TERM; sleep 1000", "etc/green.d/20_next.sh": "exit 0"})
	err = r.After(ctx, Greenboot{Folders: hang}, GreenDir)
	if err == nil || !strings.Contains(err.Error(), "green.d/10_hang.sh: it was cut off: context deadline exceeded; killed ") || !strings.Contains(err.Error(), "green.d/20_next.sh: not run: ") {
		t.Errorf("error %v", err)
	}
	r.Wait()
}
