package rehearsal

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kapernikov/osctl/pkg/etc"
)

// all are outcomes of every check in the target, without anything to say.
func all(but ...outcome) []outcome {
	var list []outcome
	for _, name := range checkNames() {
		o := outcome{Check: name}
		for _, other := range but {
			if other.Check == name && !other.Running {
				o = other
			}
		}
		list = append(list, o)
	}
	for _, other := range but {
		if other.Running {
			list = append(list, other)
		}
	}
	return list
}

func TestJudge(t *testing.T) {
	const ignored = "/etc/systemd/system/own.service:3: Unknown section 'Frob'. Ignoring."
	const moved = "/etc/systemd/system/own.service:4: Unknown section 'Frob'. Ignoring."
	const images = "/usr/lib/systemd/system/x.service:3: Unknown key 'Y' in section [Service], ignoring."
	const gone = "x.service: Command /usr/bin/x is not executable: No such file or directory"
	for name, c := range map[string]struct {
		seen     []outcome
		check    string
		status   Status
		findings []string
		notes    []string
	}{
		"nothing":                         {all(), "sshd", Passed, nil, nil},
		"never begun":                     {nil, "sshd", Unfinished, []string{"the time was over before it began"}, nil},
		"killed":                          {all(outcome{Check: "sshd", Late: true, Failed: true, Seconds: 20}), "sshd", Unfinished, []string{"it had not ended after 20 s and was killed"}, nil},
		"nothing to check":                {all(outcome{Check: "nft", Skipped: "why"}), "nft", Skipped, []string{"why"}, nil},
		"fails":                           {all(outcome{Check: "sshd", Failed: true, Lines: []string{"x"}}), "sshd", Failed, []string{"x"}, nil},
		"fails here only":                 {all(outcome{Check: "sshd", Failed: true, Lines: []string{"x"}}, outcome{Check: "sshd", Running: true, Lines: []string{"x"}}), "sshd", Failed, []string{"x"}, nil},
		"fails there too":                 {all(outcome{Check: "sshd", Failed: true, Lines: []string{"x"}}, outcome{Check: "sshd", Running: true, Failed: true, Lines: []string{"y"}}), "sshd", Known, []string{"x"}, nil},
		"killed there":                    {all(outcome{Check: "sshd", Failed: true, Lines: []string{"x"}}, outcome{Check: "sshd", Running: true, Failed: true, Late: true}), "sshd", Failed, []string{"x"}, nil},
		"warns":                           {all(outcome{Check: "sshd", Lines: []string{"x"}}), "sshd", Passed, nil, []string{"x"}},
		"own file":                        {all(outcome{Check: "units", Lines: []string{ignored}}), "units", Failed, []string{ignored}, nil},
		"own file, as before":             {all(outcome{Check: "units", Lines: []string{ignored}}, outcome{Check: "units", Running: true, Lines: []string{moved}}), "units", Passed, nil, nil},
		"file of the image":               {all(outcome{Check: "units", Lines: []string{images}}), "units", Passed, nil, []string{images}},
		"cannot start":                    {all(outcome{Check: "units", Failed: true, Lines: []string{images, gone}}), "units", Failed, []string{gone}, []string{images}},
		"could not start before":          {all(outcome{Check: "units", Failed: true, Lines: []string{gone}}, outcome{Check: "units", Running: true, Failed: true, Lines: []string{gone}}), "units", Known, []string{gone}, nil},
		"a new one beside what was known": {all(outcome{Check: "units", Failed: true, Lines: []string{gone, ignored}}, outcome{Check: "units", Running: true, Failed: true, Lines: []string{gone}}), "units", Failed, []string{ignored}, nil},
		"words that nobody knows":         {all(outcome{Check: "units", Failed: true, Lines: []string{"Alas."}}), "units", Unfinished, []string{"Alas."}, nil},
		"about systemd itself":            {all(outcome{Check: "units", Failed: true, Lines: []string{"Failed to load x: not found"}}), "units", Unfinished, []string{"Failed to load x: not found"}, nil},
		"gone":                            {all(outcome{Check: "units", Failed: true, Lines: []string{"/etc/systemd/system/m.wants/x.service: x.service " + goneWords}}), "units", Failed, []string{"/etc/systemd/system/m.wants/x.service: x.service " + goneWords}, nil},
		"a bad setting":                   {all(outcome{Check: "units", Failed: true, Lines: []string{"Unit b.service has a bad unit file setting."}}), "units", Failed, []string{"Unit b.service has a bad unit file setting."}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			own := owned([]etc.Change{{Path: "systemd/system/own.service", Kind: etc.Added}})
			for _, got := range judge(c.seen, own) {
				if got.Name != c.check {
					continue
				}
				got.Seconds = 0
				if diff := cmp.Diff(Check{Name: c.check, Status: c.status, Findings: c.findings, Notes: c.notes}, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				return
			}
			t.Errorf("no check %s", c.check)
		})
	}
}

func TestClashes(t *testing.T) {
	shadowing := etc.Change{Path: "ssh/sshd_config", Kind: etc.Same, Shadows: etc.Changed}
	named := etc.Change{Path: "ssh/own", Kind: etc.Added}
	changes := []etc.Change{
		{Path: "hostname", Kind: etc.Changed, Shadows: etc.Changed}, named, {Path: "ssh/own.d/x", Kind: etc.Added}, shadowing, {Path: "ssh/moduli", Kind: etc.Changed},
	}
	got := clashes(Check{Name: "sshd", Findings: []string{"/etc/ssh/own: line 3: Bad configuration option"}}, changes)
	if diff := cmp.Diff([]etc.Change{named, shadowing}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	dropIn := etc.Change{Path: "systemd/system/a.service.d/own.conf", Kind: etc.Added}
	got = clashes(Check{Name: "units", Findings: []string{"a.service: Service has no ExecStart=. Refusing."}}, []etc.Change{dropIn, {Path: "systemd/system/aa.service", Kind: etc.Added}})
	if diff := cmp.Diff([]etc.Change{dropIn}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if text := Describe(shadowing); text != "/etc/ssh/sshd_config is a copy of the running image's, and hides /etc/ssh/sshd_config of the new image, which differs from the running one's" {
		t.Errorf("it reads %q", text)
	}
}

func TestDecide(t *testing.T) {
	failed, late := Check{Name: "sshd", Status: Failed, Findings: []string{"alas"}}, Check{Name: "units", Status: Unfinished}
	known, skipped := Check{Name: "sshd", Status: Known}, Check{Name: "nft", Status: Skipped}
	unable, busy := errors.Join(ErrUnable, io.EOF), errors.Join(ErrUnable, ErrBusy)
	for name, c := range map[string]struct {
		checks              []Check
		err                 error
		auto, always, never string // "" goes on
	}{
		"all is well":      {[]Check{known, skipped}, nil, "", "", ""},
		"one fails":        {[]Check{failed, skipped}, nil, "sshd: alas", "sshd: alas", ""},
		"one is late":      {[]Check{late}, nil, "", "not all checks could be made", ""},
		"both":             {[]Check{late, failed}, nil, "sshd: alas", "sshd: alas", ""},
		"none is made":     {nil, unable, "", "EOF", ""},
		"the slot is busy": {nil, busy, ErrBusy.Error(), ErrBusy.Error(), ErrBusy.Error()},
		"an interruption":  {nil, context.Canceled, context.Canceled.Error(), context.Canceled.Error(), context.Canceled.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			for mode, want := range map[Mode]string{Auto: c.auto, Always: c.always, Never: c.never} {
				err := mode.Decide(Report{Checks: c.checks}, c.err)
				if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v, want %q", mode, err, want)
				}
			}
		})
	}
}

// TestUnable: what is no slot is not tried.
func TestUnable(t *testing.T) {
	file := t.TempDir() + "/slot"
	for name, o := range map[string]Options{
		"no such device": {Target: System{Device: file}, Dir: t.TempDir()},
		"no device":      {Target: System{Device: "/dev/null"}, Dir: t.TempDir()},
		"a strange name": {Target: System{Device: "/dev/null", Upper: "/a:b"}, Dir: t.TempDir()},
	} {
		if _, err := Run(t.Context(), o); !errors.Is(err, ErrUnable) {
			t.Errorf("%s: %v, want ErrUnable", name, err)
		}
	}
	if m, err := ParseMode("some"); err == nil {
		t.Errorf("a mode %q", m)
	}
}
