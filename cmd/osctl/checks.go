package main

import (
	"context"
	"fmt"
	"io/fs"
	"time"

	"github.com/kapernikov/osctl/pkg/config"
	"github.com/kapernikov/osctl/pkg/health"
	"github.com/kapernikov/osctl/pkg/probe"
)

const (
	// afterTime is how long all scripts of green.d or of red.d may take together. It is
	// less than what upgrade.Hooks grants, so that who hangs is killed and named.
	afterTime = 50 * time.Second
	// maxReason bounds what a script is told in its environment, in characters.
	maxReason = 4000
)

// greenboot is where this machine has scripts. What they are told beside
// probe.Environment is in docs/health.md.
func (m *machine) greenboot() probe.Greenboot {
	return probe.Greenboot{
		Folders: m.expects.Scripts.Folders, Timeout: time.Duration(m.expects.Scripts.Timeout),
		Env: m.env(),
	}
}

func (m *machine) env() []string { return []string{"OSCTL_SLOT=" + string(m.booted.Slot)} }

// loadHealth reads what the gate expects. If the machine's own file cannot be used, the
// image's one stands in, and without that the defaults; err says so.
func loadHealth(own string) (config.Health, error) {
	files := []string{machineHealth, imageHealth}
	if own != "" {
		files = []string{own}
	}
	f, err := config.LoadHealth(files...)
	if err == nil && own != "" && f.Path == "" {
		err = fmt.Errorf("reading what the gate expects: %w", &fs.PathError{Op: "open", Path: own, Err: fs.ErrNotExist})
	}
	if err != nil && own == "" {
		// Its own error would be of a file that nobody on the machine can change.
		f, _ = config.LoadHealth(imageHealth) //nolint:errcheck // the defaults then
	}
	return f.Health, err
}

// unexpected is the problem of a file that cannot be used, for osctl status.
func (m *machine) unexpected() []string {
	if m.bad == nil {
		return nil
	}
	return []string{"what the gate expects is not known: " + m.bad.Error()}
}

// checks are the operator's own.
func (m *machine) checks() []health.Probe {
	var list []health.Probe
	if m.bad != nil {
		list = append(list, probe.Wrong("health.yaml", health.Required, m.bad))
	}
	for _, p := range m.expects.Probes {
		list = append(list, m.run().Probe(m.question(p)))
	}
	return append(list, m.run().Checks(m.greenboot())...)
}

// question is a probe of health.yaml.
func (m *machine) question(p config.Probe) probe.Question {
	q := probe.Question{
		Name: p.Name, Level: health.Level(p.Level), URL: p.HTTP, Status: p.Status, Pattern: p.Matches, Address: p.TCP,
		Command: probe.Command{Args: p.Exec, Env: m.env()},
		Timeout: time.Duration(p.Timeout), Within: time.Duration(p.Within),
	}
	if p.Shell != "" {
		q.Command.Args = []string{"/bin/sh", "-c", p.Shell}
	}
	if p.Contains != "" {
		q.Body = []byte(p.Contains)
	}
	return q
}

// run is what runs them.
func (m *machine) run() *probe.Runner {
	if m.runner == nil {
		m.runner = probe.NewRunner()
	}
	return m.runner
}

// endChecks returns when nothing of them runs any more: this process may end next.
func (m *machine) endChecks() {
	if m.runner != nil {
		m.runner.Wait()
	}
}

// green runs the scripts that follow a green gate.
func (m *machine) green(ctx context.Context) error {
	return m.after(ctx, probe.GreenDir)
}

// red runs those that follow a red one.
func (m *machine) red(ctx context.Context, reason string) error {
	return m.after(ctx, probe.RedDir, "OSCTL_REASON="+short(cell(reason), maxReason))
}

func (m *machine) after(ctx context.Context, dir string, env ...string) error {
	ctx, cancel := context.WithTimeout(ctx, afterTime)
	defer cancel()
	g := m.greenboot()
	g.Env = append(g.Env, env...)
	return m.run().After(ctx, g, dir)
}
