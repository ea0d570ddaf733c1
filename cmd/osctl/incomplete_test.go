package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/need"
)

// TestScriptsOfAnIncompleteBoot run where a unit before boot-complete.target has failed.
func TestScriptsOfAnIncompleteBoot(t *testing.T) {
	need.Long(t)
	need.Root(t)
	containerd := daemon.Start(t)
	systemd := daemon.StartSystemd(t, map[string]string{
		"default.target":       "[Unit]\nDescription=all\nWants=boot-complete.target\n",
		"boot-complete.target": "[Unit]\nDescription=complete\nRequires=own-check.service\nAfter=own-check.service\n",
		"own-check.service":    "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/false\n",
	})
	runScripts(t, "testdata/incomplete", plain{containerd: containerd.Address, systemd: systemd.Socket})
}

// TestUnitsDelegate: the units of the image that run the operator's checks may make
// control groups for them.
func TestUnitsDelegate(t *testing.T) {
	units, err := filepath.Glob(filepath.Join(need.Top(), "images/rootfs/usr/lib/systemd/system/osctl-*.service"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		for _, command := range []string{"osctl health --verbose", "osctl settle"} {
			if !strings.Contains(string(text), "\nExecStart=/usr/bin/"+command+"\n") {
				continue
			}
			if found++; !strings.Contains(string(text), "\nDelegate=yes\n") {
				t.Errorf("%s runs the operator's checks without Delegate=yes", filepath.Base(unit))
			}
		}
	}
	if found != 2 {
		t.Errorf("%d units run the operator's checks, want 2", found)
	}
}
