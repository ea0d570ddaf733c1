package atomicfile_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kapernikov/osctl/pkg/atomicfile"
	"github.com/kapernikov/osctl/test/crash/model"
	"github.com/kapernikov/osctl/test/crash/record"
	"github.com/kapernikov/osctl/test/need"
)

// TestCuts makes every state that a power cut may leave of a Write: the old content
// or the new one, and only the new one when Write had returned.
func TestCuts(t *testing.T) {
	const before, after = "old\n", "new, and longer\n"
	if name := os.Getenv("OSCTL_TEST_WRITE"); name != "" {
		if err := atomicfile.Write(name, []byte(after), 0o640); err != nil {
			t.Fatal(err)
		}
		return
	}
	need.Long(t)
	need.Tool(t, "strace")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "data", "file")
	if err := os.WriteFile(name, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	world, base, err := record.Read(dir, model.NewPool(), record.Root{Name: "data", FS: model.Ext4})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestCuts$")
	cmd.Env, cmd.Dir = append(os.Environ(), "OSCTL_TEST_WRITE="+name), "/"
	log, err := world.Run(t.Context(), base, cmd)
	if err != nil {
		t.Fatal(err)
	}
	old, now := 0, 0
	_, err = model.Explore(log.Base, log.Ops, model.Bounds{Exhaustive: 8, Seed: 1}, func(s model.State, c model.Cut) error {
		n := s.Look(world.Nodes["data"], "file")
		switch got := string(s.Content(n)); {
		case got == before && c.Before != "the end":
			old++
		case got == after && s.Attributes(n)["mode"] == "640":
			now++
		default:
			t.Errorf("%v: the file holds %q with mode %s", c, got, s.Attributes(n)["mode"])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if old == 0 || now == 0 {
		t.Errorf("%d states with the old content, %d with the new one: the cuts did not reach every stage", old, now)
	}
}
