package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kapernikov/osctl/test/daemon"
	"github.com/kapernikov/osctl/test/need"
	"github.com/kapernikov/osctl/test/nerdctl"
)

// TestScriptsWithApplications run nerdctl beside osctl. One containerd is one machine:
// each script has its own.
func TestScriptsWithApplications(t *testing.T) {
	need.Long(t)
	need.Root(t)
	apps := nerdctl.Start(t)
	systemd := daemon.StartSystemd(t, map[string]string{
		"default.target":       "[Unit]\nDescription=all\nWants=boot-complete.target\n",
		"boot-complete.target": "[Unit]\nDescription=complete\n",
	})
	runScripts(t, "testdata/apps", plain{containerd: apps.Address, systemd: systemd.Socket, apps: apps})
}

// app NAME REPOSITORY TEXT pushes and pulls an image with that text, and sets NAME to its
// reference.
func pullApp(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: app NAME REPOSITORY TEXT")
	}
	s := of(ts)
	ref, digest := s.apps.Push(args[1], args[2])
	_, err := s.apps.Try("pull", "-q", ref)
	ts.Check(err)
	ts.Setenv(args[0], ref)
	s.digests[ref] = digest
}

// nerdctl ARGS… runs it.
func runNerdctl(ts *testscript.TestScript, neg bool, args []string) {
	apps := of(ts).apps
	if err := ts.Exec(apps.Program, apps.Args(args...)...); (err != nil) != neg {
		ts.Fatalf("nerdctl: %v", err)
	}
}

// noregistry takes the registry of the applications away.
func noRegistry(ts *testscript.TestScript, neg bool, _ []string) { of(ts).apps.CloseRegistry() }

// held SLOT [REF] holds that of applications this image and no other is held for a slot;
// "! held SLOT" that nothing is.
func held(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	want := []string{}
	if !neg {
		want = append(want, s.digests[args[1]])
	}
	ctx := namespaces.WithNamespace(s.Context(), s.apps.Namespace)
	client := s.apps.Client(s)
	list, err := client.LeasesService().List(ctx, `labels."osctl.slot"==`+args[0])
	ts.Check(err)
	got := []string{}
	for _, l := range list {
		resources, err := client.LeasesService().ListResources(ctx, l)
		ts.Check(err)
		for _, r := range resources {
			got = append(got, r.ID)
		}
	}
	if !slices.Equal(got, want) {
		ts.Fatalf("held for slot %s: %s; want %s", args[0], strings.Join(got, ", "), strings.Join(want, ", "))
	}
}
