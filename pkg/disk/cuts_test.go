package disk_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/test/crash/model"
	"github.com/kapernikov/osctl/test/crash/record"
	"github.com/kapernikov/osctl/test/need"
)

// espBytes is the size of the ESPs of this test: FAT32 takes no smaller one.
const espBytes = 40 * disk.MiB

func writeESP(name, content string) error {
	d, err := disk.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(disk.WriteESP(d, []disk.File{{Path: "EFI/BOOT/grub.cfg", Content: []byte(content)}}), d.Close())
}

// TestCutsInWriteESP makes every state that a power cut may leave while an ESP is
// written over an older one: the old one, the new one, or no file system. When
// WriteESP has returned it is the new one.
func TestCutsInWriteESP(t *testing.T) {
	if name := os.Getenv("OSCTL_TEST_ESP"); name != "" {
		if err := writeESP(name, "the new one\n"); err != nil {
			t.Fatal(err)
		}
		return
	}
	need.Long(t)
	need.Tool(t, "strace")
	dir := t.TempDir()
	name := filepath.Join(dir, "esp")
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, espBytes), writeESP(name, "the old one\n")); err != nil {
		t.Fatal(err)
	}
	world, base, err := record.Read(dir, model.NewPool(), record.Root{Name: "esp", Block: true})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestCutsInWriteESP$")
	cmd.Env, cmd.Dir = append(os.Environ(), "OSCTL_TEST_ESP="+name), "/"
	log, err := world.Run(t.Context(), base, cmd)
	if err != nil {
		t.Fatal(err)
	}
	node := world.Nodes["esp"]
	before, after := log.Base.Volume(node).Hash(), log.After.Volume(node).Hash()
	old, now, none := 0, 0, 0
	_, err = model.Explore(log.Base, log.Ops, model.Bounds{Exhaustive: 6, Samples: 50, Seed: 1}, func(s model.State, c model.Cut) error {
		v := s.Volume(node)
		switch hash := v.Hash(); {
		case hash == after:
			now++
		case c.Before == "the end":
			t.Errorf("%v: WriteESP had returned, and the file system is not the new one", c)
		case hash == before:
			old++
		case bytes.Equal(v.Chunk(0)[disk.SectorSize-2:disk.SectorSize], []byte{0x55, 0xaa}):
			t.Errorf("%v: there is a file system, and it is neither the old nor the new one", c)
		default:
			none++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d calls; states with the old file system %d, the new one %d, none %d", log.Calls, old, now, none)
	if old == 0 || now == 0 || none == 0 {
		t.Error("the cuts did not reach every stage")
	}
}
