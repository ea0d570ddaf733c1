package workload

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// endLimit is how long clearing away what a command left may take.
	endLimit = 5 * time.Second
	// mostOutput is how much of what a command says is kept.
	mostOutput = 200
	// marker is in the environment of a command, and so in that of all that it starts:
	// a container has one cgroup for all its processes, and nothing else tells those
	// apart that leave their session.
	marker = "OSCTL_GATE_PROBE="
)

// hungError says what became of a command whose time was up.
type hungError struct{ text string }

func (e *hungError) Error() string { return e.text }

// exec runs a command in the container, as its user and in its folder, and ends all of
// it when ctx is done.
func (p prober) exec(ctx context.Context, words []string) (string, error) {
	container, err := p.client.LoadContainer(ctx, p.id)
	if err != nil {
		return "", err
	}
	record, err := container.Info(ctx, containerd.WithoutRefreshedMetadata)
	if err != nil {
		return "", err
	}
	var spec specs.Spec
	if err := json.Unmarshal(record.Spec.GetValue(), &spec); err != nil {
		return "", fmt.Errorf("reading how its process was started: %w", err)
	}
	if spec.Process == nil {
		return "", errors.New("containerd does not know how its process was started")
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return "", err
	}
	if task.Pid() != p.pid {
		return "", errors.New("it has just ended")
	}
	id := "osctl-gate-" + rand.Text()
	var out output
	process, err := task.Exec(ctx, id, command(spec.Process, words, id), cio.NewCreator(cio.WithStreams(nil, &out, &out)))
	if err != nil {
		if ctx.Err() != nil {
			p.forget(ctx, id)
		}
		return "", err
	}
	r := &run{process: process, id: id, container: p.pid}
	code, err := r.wait(ctx)
	left, ended := r.end(ctx)
	said := ""
	if text := out.String(); text != "" {
		said = ", " + text
	}
	switch {
	case ctx.Err() != nil && ended != nil:
		return "", &hungError{"it cannot be ended: " + ended.Error()}
	case ctx.Err() != nil:
		return "", &hungError{"it was ended" + said}
	case err != nil:
		return "", err
	case ended != nil:
		return "", fmt.Errorf("clearing away after it: %w", ended)
	case code != 0:
		return "", fmt.Errorf("exit status %d%s", code, said)
	case left > 0:
		return fmt.Sprintf("exit status 0 (processes that it left were ended: %d)", left), nil
	}
	return "exit status 0", nil
}

// forget takes a command from containerd's list that may have come there though nobody
// waited for the answer.
func (p prober) forget(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	_, _ = p.client.TaskService().DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: p.id, ExecID: id})
}

// command is a process like the container's own with other words.
func command(own *specs.Process, words []string, id string) *specs.Process {
	p := *own
	p.Args, p.CommandLine, p.Terminal, p.ConsoleSize = words, "", false, nil
	p.Env = append(slices.Clone(own.Env), marker+id)
	return &p
}

// run is one command in a container.
type run struct {
	process   containerd.Process
	id        string
	container uint32 // the container's first process
	started   bool   // it may run or have run
	exited    bool   // its first process has ended
}

// wait starts the command and waits until it ends or ctx is done.
func (r *run) wait(ctx context.Context) (code uint32, err error) {
	err = r.process.Start(ctx)
	r.started = err == nil || ctx.Err() != nil
	if err != nil {
		return 0, err
	}
	ended, err := r.process.Wait(ctx)
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case status := <-ended:
		r.exited = status.Error() == nil
		return status.ExitCode(), status.Error()
	}
}

// end kills whatever is left of the command, takes it from containerd's list and says
// how many processes outlived it. It has its own time: the one of ctx is up when it
// matters most.
func (r *run) end(ctx context.Context) (left int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	defer func() {
		// Delete has done that unless it failed.
		r.process.IO().Cancel()
		r.process.IO().Close()
	}()
	if r.started {
		if left, err = r.kill(ctx); err != nil {
			return left, err
		}
		r.drain(ctx)
	}
	if _, err := r.process.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return left, err
	}
	return left, nil
}

// kill ends the command and what it has started, and waits for that. The processes end
// even when containerd has gone meanwhile.
func (r *run) kill(ctx context.Context) (left int, err error) {
	var gone error
	if !r.exited {
		gone = r.process.Kill(ctx, syscall.SIGKILL)
	}
	// What is killed may have started something just before.
	for n := -1; n != 0; left += n {
		if ctx.Err() != nil && n > 0 {
			return left, errors.New("there are always more of its processes")
		}
		if n, err = killMarked(r.container, marker+r.id); err != nil {
			return left, err
		}
	}
	if r.exited {
		return left, nil
	}
	if gone != nil && !errdefs.IsNotFound(gone) {
		return left, gone
	}
	exited, err := r.process.Wait(ctx)
	if err != nil {
		return left, err
	}
	if status := <-exited; status.Error() != nil && !errdefs.IsNotFound(status.Error()) {
		return left, status.Error()
	}
	return left, nil
}

// drain waits until all that the command said has come. It does not take long: nobody
// is left who could say more.
func (r *run) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.process.IO().Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// killMarked kills the processes that have a mark in their environment and are in the
// same process namespace as another one, waits for their end, and says how many they
// were. Other namespaces are not looked into: one process that hangs in the kernel may
// hold up whoever reads its environment.
func killMarked(beside uint32, mark string) (int, error) {
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", beside))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil // with the first process all others of a container end
	}
	if err != nil {
		return 0, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		killed, err := killIfMarked(pid, space, mark)
		if err != nil {
			return n, err
		}
		if killed {
			n++
		}
	}
	return n, nil
}

func killIfMarked(pid int, space, mark string) (bool, error) {
	if at, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || at != space {
		return false, nil
	}
	// A number may be given away at any moment; a handle stays with its process.
	handle, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false, nil
	}
	defer unix.Close(handle)
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || !slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return string(v) == mark }) {
		return false, nil
	}
	if err := unix.PidfdSendSignal(handle, unix.SIGKILL, nil, 0); err != nil {
		return false, nil // it has ended by itself
	}
	poll := []unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}
	for {
		switch n, err := unix.Poll(poll, int(endLimit/time.Millisecond)); {
		case err == unix.EINTR:
		case err != nil:
			return false, err
		case n == 0:
			return false, fmt.Errorf("process %d does not end", pid)
		default:
			return true, nil
		}
	}
}

// output keeps the beginning of what is written to it and takes the rest.
type output struct {
	mu   sync.Mutex
	kept []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept = append(o.kept, p[:min(len(p), 4*mostOutput-len(o.kept))]...)
	return len(p), nil
}

// String is what was said, in one line.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return plain(string(o.kept), mostOutput)
}
