package main

import (
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
