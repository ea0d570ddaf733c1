// Package probe runs the checks that a machine's operator brings: scripts in
// greenboot's directories, commands, and questions over HTTP and TCP. Each becomes a
// health.Probe.
//
// Whatever it starts is ended as a whole: when a command has ended, when its time is
// over, when the caller's context is done. What it has forked goes with it, also what
// made a session of its own, ignores SIGTERM or runs on in the background. On a machine
// with cgroup v2 each command has a control group of its own, which is killed in one
// step; where none can be made, all descendants in other sessions than this process's
// are hunted down, and commands run one at a time so that it is known whose they are.
//
// The package refuses to judge: whether the gate is green is for package health. It
// reads no configuration, and it restrains nobody: scripts are the operator's own and
// run as root. What root moves out of its control group, such as a service that it
// starts through systemd, is not a part of the command any more.
//
// It promises that Run returns soon after the command's time, that no output is too
// large for it, and that nothing of a command is left when Run has returned; if
// something is (a process that hangs in the kernel), the result says so and is no
// success.
package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultTimeout is how long a command may take when nothing else is said.
const DefaultTimeout = 10 * time.Second

const (
	// defaultGrace is how long a command has between SIGTERM and SIGKILL.
	defaultGrace = 2 * time.Second
	// endLimit is how long killed processes may take to be gone.
	endLimit = 5 * time.Second
	// drainLimit is how long what they said may take to arrive afterwards.
	drainLimit = time.Second
)

// Command is what to run.
type Command struct {
	Args    []string      // program, by its path or by a name in Path, and arguments
	Env     []string      // KEY=value beside Environment
	Timeout time.Duration // 0 is DefaultTimeout

	due <-chan struct{} // in tests: when its time is over, instead of Timeout
}

// Path is where programs are looked for.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Environment is what every command finds in its environment, whatever osctl has in
// its own.
func Environment() []string {
	return []string{"PATH=" + Path, "HOME=/root", "LANG=C.UTF-8"}
}

// Result is how a command ended. The zero value is no success.
type Result struct {
	Ended   bool          // by itself, with Code
	Code    int           // its exit code, if it ended by itself
	Err     error         // why it did not run, or what ended it
	Late    time.Duration // its time, if it had not ended within it
	Killed  int           // processes that were still there, the command itself included
	Names   []string      // of the first few of them
	Remain  int           // processes that did not even end when they were killed
	Output  string        // the end of what it said on both outputs
	ByGroup bool          // it had a control group of its own
}

// OK reports whether the command ended by itself with exit code 0, in time, and can be
// forgotten.
func (r Result) OK() bool { return r.Ended && r.Code == 0 && r.Err == nil && r.Remain == 0 }

// String says in one line how it ended and what it said last.
func (r Result) String() string {
	var text string
	switch {
	case r.Late > 0:
		text = fmt.Sprintf("has not ended within %v", r.Late)
	case r.Err != nil:
		text = r.Err.Error()
	case r.Ended:
		text = fmt.Sprintf("exit %d", r.Code)
	default:
		text = "did not run"
	}
	if r.Killed > 0 {
		text += "; killed " + r.victims()
	}
	if r.Remain > 0 {
		text += fmt.Sprintf("; %d of them cannot be killed", r.Remain)
	}
	if r.Output != "" {
		text += "; said: " + r.Output
	}
	return text
}

// victims names the processes that were killed: "3 processes (sh, sleep)".
func (r Result) victims() string {
	what := "1 process"
	if r.Killed > 1 {
		what = fmt.Sprintf("%d processes", r.Killed)
	}
	if names := slices.Compact(slices.Sorted(slices.Values(r.Names))); len(names) > 0 {
		what += " (" + strings.Join(names, ", ") + ")"
	}
	return what
}

// whole is all that one command has started.
type whole interface {
	// prepare says how the command has to be started so that it belongs.
	prepare(attr *syscall.SysProcAttr)
	// end kills all of it and returns when it is gone, or after endLimit: how many
	// processes there were, the names of the first few, and how many are left. command
	// is the process that was started, which somebody else waits for.
	end(command int) (killed int, names []string, remain int)
	// close gives back what it holds. It returns at once.
	close()
	// byGroup reports whether it is a control group.
	byGroup() bool
}

// Runner runs commands. Its methods may be called at the same time.
type Runner struct {
	groups  string        // the folder for control groups; "" where none can be made
	turn    chan struct{} // without groups: held by the command that runs
	grace   time.Duration // between SIGTERM and SIGKILL
	running sync.WaitGroup
	mu      sync.Mutex
	made    int // control groups so far
}

// NewRunner returns a Runner with control groups if this process may make any below
// its own, else one without.
func NewRunner() *Runner {
	r := WithoutGroups()
	if dir, err := ownGroup(); err == nil && canGroup(dir) {
		r.groups = dir
	}
	return r
}

// WithoutGroups returns a Runner that makes no control groups and runs one command at
// a time.
func WithoutGroups() *Runner { return &Runner{turn: make(chan struct{}, 1), grace: defaultGrace} }

// Wait returns when no command runs any more. Their contexts should be done.
func (r *Runner) Wait() { r.running.Wait() }

// Run runs a command until it ends, its time is over or ctx is done, and ends all that
// is left of it.
func (r *Runner) Run(ctx context.Context, c Command) Result {
	r.running.Add(1)
	defer r.running.Done()
	if len(c.Args) == 0 {
		return Result{Err: errors.New("there is no command")}
	}
	if ctx.Err() != nil {
		return Result{Err: fmt.Errorf("it was not started: %w", context.Cause(ctx))}
	}
	w, err := r.begin(ctx)
	if err != nil {
		return Result{Err: err}
	}
	p, err := start(c, w)
	if w.byGroup() && refused(err) {
		w.close()
		if w, err = r.hunt(ctx); err != nil {
			return Result{Err: err}
		}
		p, err = start(c, w)
	}
	defer w.close()
	if err != nil {
		return Result{Err: fmt.Errorf("it cannot be started: %w", err)}
	}
	return p.finish(w, p.await(ctx, c, r.grace))
}

// finish ends all that is left of the command. A process that hangs in the kernel does
// not hear of that, and is not waited for.
func (p *process) finish(w whole, res Result) Result {
	res.Killed, res.Names, res.Remain = w.end(p.cmd.Process.Pid)
	limit := time.NewTimer(drainLimit)
	defer limit.Stop()
	select {
	case <-p.gone:
	case <-limit.C:
		res.Remain = max(res.Remain, 1)
	}
	res.Output, res.ByGroup = p.said(), w.byGroup()
	return res
}

// begin makes what holds the processes of one command.
func (r *Runner) begin(ctx context.Context) (whole, error) {
	if r.groups == "" {
		return r.hunt(ctx)
	}
	r.mu.Lock()
	r.made++
	n := r.made
	r.mu.Unlock()
	g, err := newGroup(r.groups, fmt.Sprintf("%s%d.%d", groupPrefix, os.Getpid(), n))
	if err != nil {
		return r.hunt(ctx)
	}
	return g, nil
}

// process is a command that was started.
type process struct {
	cmd    *exec.Cmd
	gone   chan struct{} // closed when it has ended
	err    error         // of Wait, once it has
	output *os.File      // the reading end of its outputs
	tail   tail
	read   chan struct{} // closed when no more output will come
}

func start(c Command, w whole) (*process, error) {
	program, err := lookUp(c.Args[0])
	if err != nil {
		return nil, err
	}
	from, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	// Not exec.CommandContext: it would end one process and forget the others.
	p := &process{
		cmd:    &exec.Cmd{Path: program, Args: c.Args, Env: append(Environment(), c.Env...), Dir: "/", Stdout: to, Stderr: to, SysProcAttr: &syscall.SysProcAttr{Setsid: true}},
		gone:   make(chan struct{}),
		output: from, read: make(chan struct{}),
	}
	w.prepare(p.cmd.SysProcAttr)
	err = p.cmd.Start()
	to.Close() //nolint:errcheck // the child has it
	if err != nil {
		from.Close() //nolint:errcheck // nothing was read
		return nil, err
	}
	go func() {
		defer close(p.read)
		p.tail.readAll(from)
	}()
	go func() {
		defer close(p.gone)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// lookUp finds a program as a shell with Path would.
func lookUp(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(Path, ":") {
		file := dir + "/" + name
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// await returns when the command has ended or has to.
func (p *process) await(ctx context.Context, c Command, grace time.Duration) Result {
	limit := c.Timeout
	if limit <= 0 {
		limit = DefaultTimeout
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	over := timer.C
	if c.due != nil {
		over = nil
	}
	select {
	case <-p.gone:
		return p.result()
	case <-ctx.Done():
		return Result{Err: fmt.Errorf("it was cut off: %w", context.Cause(ctx))}
	case <-over:
	case <-c.due:
	}
	// Its process group only: what does not hear it is killed soon.
	_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGTERM) //nolint:errcheck // it may have ended just now
	timer.Reset(grace)
	select {
	case <-p.gone:
	case <-ctx.Done():
	case <-timer.C:
	}
	return Result{Late: limit, Err: errLate}
}

var errLate = errors.New("its time is over")

// result is that of a command that ended by itself.
func (p *process) result() Result {
	if exit := (*exec.ExitError)(nil); p.err != nil && !errors.As(p.err, &exit) {
		return Result{Err: p.err}
	}
	state, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && state.Signaled() {
		return Result{Err: fmt.Errorf("ended by signal %d (%v)", int(state.Signal()), state.Signal())}
	}
	return Result{Ended: true, Code: p.cmd.ProcessState.ExitCode()}
}

// said is the end of the command's output, when all who could write are gone. Somebody
// who got away may hold on to it.
func (p *process) said() string {
	limit := time.NewTimer(drainLimit)
	defer limit.Stop()
	select {
	case <-p.read:
	case <-limit.C:
	}
	p.output.Close() //nolint:errcheck // this also ends who reads
	<-p.read
	return p.tail.String()
}
