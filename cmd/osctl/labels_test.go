package main

import (
	"testing"

	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/need"
	"github.com/kapernikov/osctl/test/nerdctl"
)

// TestScriptsWithLabels run containers that say to the gate what they are. One containerd
// is one machine: each script has its own.
func TestScriptsWithLabels(t *testing.T) {
	need.Long(t)
	need.Root(t)
	apps := nerdctl.Start(t)
	systemd := daemon.StartSystemd(t, map[string]string{
		"default.target":       "[Unit]\nDescription=all\nWants=boot-complete.target\n",
		"boot-complete.target": "[Unit]\nDescription=complete\n",
	})
	runScripts(t, "testdata/labels", plain{containerd: apps.Address, systemd: systemd.Socket, apps: apps})
}
