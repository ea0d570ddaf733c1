package rehearsal

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// containerID is the same each time, so that what a crash has left is found.
const containerID = "rehearsal"

// tidyLimit is how long the end of a container may take, whatever ended it.
const tidyLimit = 20 * time.Second

// ErrBusy says that the device of the slot is still in use after a rehearsal.
var ErrBusy = errors.New("the slot is still in use after the rehearsal")

// stage is where a rehearsal takes place.
type stage struct {
	Options
	dir             string // everything that is thrown away
	target, running fileSystem
	opts            []containerd.NewContainerOpts // a test's
}

// fileSystem is how a device is mounted.
type fileSystem struct{ device, kind, option string }

func newStage(o Options) (*stage, error) {
	s := &stage{Options: o, dir: filepath.Join(o.Dir, containerID)}
	for _, path := range []string{s.dir, o.Target.Upper, o.Running.Upper} {
		if strings.ContainsAny(path, ":,\\") {
			return nil, fmt.Errorf("%s has a character in its name that overlayfs does not take", path)
		}
	}
	var err error
	if s.target, err = identify(o.Target.Device); err != nil {
		return nil, err
	}
	if o.Running.Device != "" {
		s.running, err = identify(o.Running.Device)
	}
	return s, err
}

// identify tells by its first bytes how a block device is to be mounted: ext4
// (docs.kernel.org, filesystems/ext4/globals.html), squashfs (squashfs_fs.h) or erofs
// (erofs_fs.h).
func identify(device string) (fileSystem, error) {
	info, err := os.Stat(device)
	if err != nil {
		return fileSystem{}, err
	}
	if info.Mode()&fs.ModeDevice == 0 || info.Mode()&fs.ModeCharDevice != 0 {
		return fileSystem{}, fmt.Errorf("%s is no block device", device)
	}
	f, err := os.Open(device)
	if err != nil {
		return fileSystem{}, err
	}
	defer f.Close()
	var head [2048]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return fileSystem{}, fmt.Errorf("reading %s: %w", device, err)
	}
	switch {
	case head[0x438] == 0x53 && head[0x439] == 0xef:
		return fileSystem{device, "ext4", "noload"}, nil
	case string(head[:4]) == "hsqs":
		return fileSystem{device: device, kind: "squashfs"}, nil
	case string(head[1024:1028]) == "\xe2\xe1\xf5\xe0":
		return fileSystem{device: device, kind: "erofs"}, nil
	}
	return fileSystem{}, fmt.Errorf("%s holds no file system that is known here", device)
}

// play makes the container, waits for its end, and removes it with all that is in it.
func (s *stage) play(ctx context.Context, end time.Time) (seen []outcome, err error) {
	ctx = namespaces.WithNamespace(ctx, s.Namespace)
	within, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	client, err := s.dial(within)
	if err != nil {
		return nil, fmt.Errorf("%w: connecting to containerd: %w", ErrUnable, err)
	}
	defer client.Close()
	if err := s.tidy(ctx, client); err != nil {
		return nil, fmt.Errorf("%w: removing what an earlier rehearsal left: %w", ErrUnable, err)
	}
	defer func() {
		if tidied := s.tidy(ctx, client); tidied != nil {
			err = errors.Join(err, fmt.Errorf("removing the rehearsal: %w", tidied))
		}
	}()
	exited, err := s.start(within, client, end)
	for err != nil && within.Err() == nil && leftOver(err) {
		// containerd was still making one for a process that was killed: now it can be seen.
		time.Sleep(50 * time.Millisecond)
		if err := s.tidy(ctx, client); err != nil {
			return nil, fmt.Errorf("%w: removing what an earlier rehearsal left: %w", ErrUnable, err)
		}
		exited, err = s.start(within, client, end)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnable, err)
	}
	select {
	case <-exited:
	case <-within.Done(): // it is killed with all that it has started
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return s.read()
}

// leftOver reports whether a container could not be made because there is one. Of its
// own folder containerd says so in words only.
func leftOver(err error) bool {
	return errdefs.IsAlreadyExists(err) || strings.Contains(err.Error(), unix.EEXIST.Error())
}

// dial connects. It tries the socket by itself first: containerd's own dialer waits for
// one that does not exist.
func (s *stage) dial(ctx context.Context) (*containerd.Client, error) {
	dialer := func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.Address)
	}
	probe, err := dialer(ctx, "")
	if err != nil {
		return nil, err
	}
	probe.Close()
	return containerd.New(s.Address, containerd.WithExtraDialOpts([]grpc.DialOption{grpc.WithContextDialer(dialer)}))
}

// start makes the container and starts it; the channel tells of its end.
func (s *stage) start(ctx context.Context, client *containerd.Client, end time.Time) (<-chan containerd.ExitStatus, error) {
	if err := s.makeDirs(); err != nil {
		return nil, fmt.Errorf("making room for it: %w", err)
	}
	opts := append([]containerd.NewContainerOpts{containerd.WithNewSpec(s.spec(), s.process(time.Until(end)))}, s.opts...)
	c, err := client.NewContainer(ctx, containerID, opts...)
	if err != nil {
		return nil, fmt.Errorf("making its container: %w", err)
	}
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return nil, fmt.Errorf("making its container: %w", err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		return nil, fmt.Errorf("waiting for its container: %w", err)
	}
	if err := task.Start(ctx); err != nil {
		return nil, fmt.Errorf("starting its container: %w", err)
	}
	return exited, nil
}

// process is the program in the container. It gets a little less time than there is,
// so that its report is whole when the time is over.
func (s *stage) process(left time.Duration) oci.SpecOpts {
	args := append([]string{programPath}, s.Args...)
	return oci.WithProcessArgs(append(args, (left - left/20).String())...)
}

// read reads what Inside wrote, also when it was killed in the middle of a line.
func (s *stage) read() ([]outcome, error) {
	f, err := os.Open(filepath.Join(s.dir, "out/report"))
	if err != nil {
		return nil, fmt.Errorf("reading what the rehearsal saw: %w", err)
	}
	defer f.Close()
	var seen []outcome
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxOutput*16)
	for lines.Scan() {
		var o outcome
		if json.Unmarshal(lines.Bytes(), &o) != nil {
			break
		}
		seen = append(seen, o)
	}
	if len(seen) == 0 {
		return nil, fmt.Errorf("%w: its container ended without a word", ErrUnable)
	}
	return seen, nil
}

// tidy removes the container, killing what runs in it, and its directory. It is done
// also after an interruption.
func (s *stage) tidy(ctx context.Context, client *containerd.Client) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyLimit)
	defer cancel()
	c, err := client.LoadContainer(ctx, containerID)
	if err == nil {
		err = s.remove(ctx, c)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	// Its mounts were never visible from here.
	return os.RemoveAll(s.dir)
}

// Clear ends what a process that was killed has left of a rehearsal, and which would
// hold the slot until its limit; or for good, if it was made and never started. It reports whether there was anything. Address,
// Namespace, Dir and Target count of the options. The caller has the machine's lock.
func Clear(ctx context.Context, o Options) (bool, error) {
	s := &stage{Options: o, dir: filepath.Join(o.Dir, containerID), target: fileSystem{device: o.Target.Device}}
	if _, err := os.Stat(s.dir); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	ctx = namespaces.WithNamespace(ctx, s.Namespace)
	client, err := s.dial(ctx)
	if err != nil {
		return false, fmt.Errorf("ending an earlier rehearsal: connecting to containerd: %w", err)
	}
	defer client.Close()
	if err := s.tidy(ctx, client); err != nil {
		return false, fmt.Errorf("ending an earlier rehearsal: %w", err)
	}
	return true, s.free()
}

func (s *stage) remove(ctx context.Context, c containerd.Container) error {
	task, err := c.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, containerd.WithProcessKill)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return c.Delete(ctx)
}

// free waits until the devices can be opened exclusively: the kernel takes mounts away
// a little after the last process that saw them.
func (s *stage) free() error {
	for end := time.Now().Add(tidyLimit); ; {
		fd, err := unix.Open(s.target.device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			return unix.Close(fd)
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return fmt.Errorf("%w: %w", ErrBusy, &fs.PathError{Op: "open", Path: s.target.device, Err: err})
		}
		time.Sleep(10 * time.Millisecond)
	}
}
