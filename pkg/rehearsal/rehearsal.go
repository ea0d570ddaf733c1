package rehearsal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/kapernikov/osctl/pkg/etc"
)

// Mode says when there is a rehearsal, and what it takes to go on.
type Mode string

// The modes.
const (
	// Auto rehearses where it can be done within the limit. What could not be looked
	// at in time holds nothing back; what fails does.
	Auto Mode = "auto"
	// Always goes on only after a rehearsal that came to its end.
	Always Mode = "always"
	Never  Mode = "never"
)

// ParseMode reads a mode.
func ParseMode(text string) (Mode, error) {
	if m := Mode(text); slices.Contains([]Mode{Auto, Always, Never}, m) {
		return m, nil
	}
	return "", fmt.Errorf("%q is none of auto, always, never", text)
}

// DefaultLimit is how long a rehearsal may take in all.
const DefaultLimit = time.Minute

// ErrUnable says that there was no rehearsal: this machine cannot do it now.
var ErrUnable = errors.New("the system cannot be rehearsed here")

// System is one of the two that a rehearsal looks into.
type System struct {
	// Device is the block device with its file system; "" is what is mounted on /,
	// with the /etc that programs see.
	Device string
	// Upper is what lies over the /etc on Device (package etc); "" or a directory that
	// does not exist: nothing.
	Upper string
}

// Options describe a rehearsal.
type Options struct {
	// Address is containerd's socket, Namespace the one of osctl's own.
	Address, Namespace string
	// Dir is where the throw-away files go, in memory: a directory "rehearsal" in it.
	// It has neither a colon nor a comma in its name.
	Dir string
	// Program is the file of this program, and Args what makes it call Inside.
	Program string
	Args    []string
	// Target is the system that is to start next. It has a Device.
	Target, Running System
	// Changes compares Target's /etc with the images of both systems. It is called
	// when something was found; nil, or an error, leaves clashes unnamed.
	Changes func() ([]etc.Change, error) `json:"-"`
	// Limit bounds everything; 0 is DefaultLimit.
	Limit time.Duration
}

// Status is how a check ended.
type Status string

// The statuses.
const (
	Passed Status = "passed"
	Failed Status = "failed"
	// Known: it fails, and so it does in the running system.
	Known Status = "known"
	// Skipped: the image has nothing to check.
	Skipped Status = "skipped"
	// Unfinished: the time was over, or the program that checks could not do it.
	Unfinished Status = "unfinished"
)

// Check is one check and its end.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Findings are what the program said, a line each: why it failed, was skipped or
	// not finished; at most maxLines.
	Findings []string `json:"findings,omitempty"`
	// Notes are new as well and hold nothing back.
	Notes []string `json:"notes,omitempty"`
	// Clashes are the files of /etc that the findings are about.
	Clashes []etc.Change `json:"clashes,omitempty"`
	// Seconds is how long it took in the target system.
	Seconds float64 `json:"seconds"`
}

// Report is what a rehearsal saw.
type Report struct {
	Checks []Check `json:"checks"`
	// Seconds is how long all of it took, the container included.
	Seconds float64 `json:"seconds"`
}

// with lists the checks that ended so.
func (r Report) with(s Status) []Check {
	var list []Check
	for _, c := range r.Checks {
		if c.Status == s {
			list = append(list, c)
		}
	}
	return list
}

// Refusal says why a system must not start as it is.
type Refusal struct {
	// Failed are the checks that the image does not pass with this /etc.
	Failed []Check
	// Unfinished are those that did not end in time.
	Unfinished []Check
	// Unable is why there was no rehearsal at all.
	Unable error
}

// Error lists the findings, and which files of /etc clash with which of the image.
func (r *Refusal) Error() string {
	if r.Unable != nil {
		return "refused without a rehearsal: " + r.Unable.Error()
	}
	var b strings.Builder
	b.WriteString("refused by the rehearsal: the new system does not get along with the /etc of this machine")
	if len(r.Failed) == 0 {
		b.Reset()
		b.WriteString("refused by the rehearsal: not all checks could be made")
	}
	for _, c := range slices.Concat(r.Failed, r.Unfinished) {
		for _, line := range c.Findings {
			fmt.Fprintf(&b, "\n%s: %s", c.Name, line)
		}
		for _, change := range c.Clashes {
			b.WriteString("\n" + c.Name + ": " + Describe(change))
		}
	}
	return b.String()
}

// Unwrap returns why there was no rehearsal.
func (r *Refusal) Unwrap() error { return r.Unable }

// Decide returns nil if the upgrade may go on after Run returned these, a *Refusal if
// it may not, or err itself if that is about neither system (an interruption, a slot
// that is busy now).
func (m Mode) Decide(report Report, err error) error {
	if err != nil && (!errors.Is(err, ErrUnable) || errors.Is(err, ErrBusy)) {
		return err
	}
	r := Refusal{Failed: report.with(Failed), Unfinished: report.with(Unfinished), Unable: err}
	switch {
	case m == Never:
		return nil
	case len(r.Failed) > 0:
		return &r
	case m == Always && (len(r.Unfinished) > 0 || err != nil):
		return &r
	}
	return nil
}

// Run rehearses. It returns ErrUnable if this machine cannot, and the report of a
// rehearsal that was cut short by the limit without an error.
func Run(ctx context.Context, o Options) (Report, error) { return run(ctx, o, nil) }

func run(ctx context.Context, o Options, opts []containerd.NewContainerOpts) (Report, error) {
	begin := time.Now()
	if o.Limit == 0 {
		o.Limit = DefaultLimit
	}
	s, err := newStage(o)
	if err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrUnable, err)
	}
	s.opts = opts
	seen, err := s.play(ctx, begin.Add(o.Limit))
	if err != nil {
		if busy := s.free(); busy != nil {
			err = errors.Join(err, busy)
		}
		return Report{}, err
	}
	var changes []etc.Change
	own := func(string) bool { return true }
	if found(seen) && o.Changes != nil {
		if changes, err = o.Changes(); err == nil {
			own = owned(changes)
		}
	}
	report := Report{Checks: judge(seen, own)}
	for i := range report.Checks {
		if report.Checks[i].Status == Failed {
			report.Checks[i].Clashes = clashes(report.Checks[i], changes)
		}
	}
	err = s.free()
	report.Seconds = time.Since(begin).Seconds()
	return report, err
}
