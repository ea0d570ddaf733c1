package probe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kapernikov/osctl/pkg/health"
)

// DefaultScriptTimeout is how long a script may take when nothing else is said.
const DefaultScriptTimeout = time.Minute

// afterLimit is how long one script of green.d or red.d may take, so that one that
// hangs does not take the others' time.
const afterLimit = 20 * time.Second

// Greenboot is where greenboot's directories are, and how their scripts are run.
type Greenboot struct {
	Folders []string      // the image's own first; the last one has greenboot.conf as well
	Timeout time.Duration // of each check; 0 is DefaultScriptTimeout
	Env     []string      // KEY=value beside Environment
}

// Checks are the scripts of required.d and wanted.d as probes. Those of one directory
// run one after the other; each once at the start of the gate, again until it succeeds,
// and once more after the soak. What is wrong with a directory is a probe that fails.
func (r *Runner) Checks(g Greenboot) []health.Probe {
	var list []health.Probe
	disabled, err := Disabled(g.conf())
	if err != nil {
		list = append(list, Wrong("greenboot.conf", health.Wanted, err))
	}
	for _, of := range []struct {
		dir   string
		level health.Level
	}{{RequiredDir, health.Required}, {WantedDir, health.Wanted}} {
		scripts, err := Scripts(g.Folders, of.dir, disabled)
		if err != nil {
			list = append(list, Wrong(of.dir, of.level, err))
		}
		for _, s := range scripts {
			p := r.command(Command{Args: s.Args, Env: g.Env, Timeout: g.timeout()})
			p.Kind, p.Name, p.Level, p.Once, p.Queue = health.KindScript, s.Name, of.level, true, of.dir
			list = append(list, p)
		}
	}
	return list
}

func (g Greenboot) conf() string {
	if len(g.Folders) == 0 {
		return ""
	}
	return g.Folders[len(g.Folders)-1] + "/greenboot.conf"
}

func (g Greenboot) timeout() time.Duration {
	if g.Timeout > 0 {
		return g.Timeout
	}
	return DefaultScriptTimeout
}

// command is a command as a probe that has no name yet.
func (r *Runner) command(c Command) health.Probe {
	return health.Probe{
		Expected: "exit 0",
		// It ends by itself, and says more than that it has not answered.
		Timeout: c.Timeout + r.grace + endLimit + 2*drainLimit,
		Run: func(ctx context.Context) (string, bool) {
			res := r.Run(ctx, c)
			return res.String(), res.OK()
		},
	}
}

// Wrong is a probe that fails because what should be asked is not known. It does not get
// better by waiting, so a required one ends the gate.
func Wrong(name string, level health.Level, err error) health.Probe {
	return health.Probe{
		Kind: health.KindConfig, Name: name, Level: level, Expected: "can be used", Within: time.Second,
		Run: func(context.Context) (string, bool) { return err.Error(), false },
	}
}

// After runs the scripts of GreenDir or RedDir, one after the other, until ctx is done.
// The error names those that went wrong and those that had no time left; the others ran
// all the same.
func (r *Runner) After(ctx context.Context, g Greenboot, dir string) error {
	scripts, err := Scripts(g.Folders, dir, nil)
	errs := []error{err}
	for _, s := range scripts {
		if ctx.Err() != nil {
			errs = append(errs, fmt.Errorf("%s: not run: %w", s.Name, context.Cause(ctx)))
			continue
		}
		if res := r.Run(ctx, Command{Args: s.Args, Env: g.Env, Timeout: afterLimit}); !res.OK() {
			errs = append(errs, fmt.Errorf("%s: %s", s.Name, res))
		}
	}
	return errors.Join(errs...)
}
