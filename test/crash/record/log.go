package record

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kapernikov/osctl/test/crash/model"
)

// Log is what a program did to a world.
type Log struct {
	Base  model.State // before
	After model.State // as the program saw it at its end
	Ops   []model.Op
	// Calls is the number of system calls behind the ops.
	Calls int
}

// Run runs a program under strace and returns its log. The world's folder holds base.
// The program's own failure is returned as an error that wraps *exec.ExitError,
// together with the log.
func (w *World) Run(ctx context.Context, base model.State, cmd *exec.Cmd) (Log, error) {
	dir, err := os.MkdirTemp("", "strace")
	if err != nil {
		return Log{}, err
	}
	defer os.RemoveAll(dir)
	trace := filepath.Join(dir, "trace")
	args := append([]string{"-f", "--seccomp-bpf", "-xx", "-y", "-s", "8388608", "-e", "signal=none", "-e", "trace=" + calls, "-o", trace}, cmd.Args...)
	traced := exec.CommandContext(ctx, "strace", args...)
	traced.Env, traced.Dir, traced.SysProcAttr = cmd.Env, cmd.Dir, cmd.SysProcAttr
	out, failed := traced.CombinedOutput()
	var exit *exec.ExitError
	if failed != nil && !errors.As(failed, &exit) {
		return Log{}, failed
	}
	f, err := os.Open(trace)
	if err != nil {
		return Log{}, fmt.Errorf("%w: %v: %s", err, failed, out)
	}
	defer f.Close()
	t := &translator{World: w, cwd: cmd.Dir, pos: map[*model.Node]int64{}, dsync: map[*model.Node]bool{}, log: Log{Base: base.Clone()}}
	t.now = base.Clone()
	if err := parse(f, t.call); err != nil {
		return Log{}, fmt.Errorf("reading the trace: %w", err)
	}
	t.log.After = t.now
	if failed != nil {
		return t.log, fmt.Errorf("%v: %w: %s", cmd.Args, failed, out)
	}
	return t.log, nil
}

// translator turns calls into ops. What a call means depends on the names and
// positions at that moment.
type translator struct {
	*World
	now   model.State
	cwd   string
	pos   map[*model.Node]int64 // of the last descriptor that was opened
	dsync map[*model.Node]bool  // opened with O_SYNC or O_DSYNC
	log   Log
}

// place is a name below a root.
type place struct {
	root  Root
	dir   *model.Node // nil if the directory is not there, or for a root itself
	name  string
	node  *model.Node // nil if there is none
	below bool        // below a root at all
	text  string
}

// at finds a path.
func (t *translator) at(path string) place {
	if !filepath.IsAbs(path) {
		path = filepath.Join(t.cwd, path)
	}
	path = filepath.Clean(path)
	for _, r := range t.Roots {
		root := filepath.Join(cmp.Or(t.As, t.Dir), r.Name)
		if path == root {
			return place{root: r, node: t.Nodes[r.Name], below: true, text: r.Name}
		}
		rest, ok := strings.CutPrefix(path, root+"/")
		if !ok {
			continue
		}
		names := strings.Split(rest, "/")
		p := place{root: r, below: true, name: names[len(names)-1], text: filepath.Join(r.Name, rest)}
		p.dir = t.now.Look(t.Nodes[r.Name], names[:len(names)-1]...)
		if p.dir != nil {
			p.node = t.now.Look(p.dir, p.name)
		}
		return p
	}
	return place{}
}

// path joins a directory descriptor and a name.
func (t *translator) path(dirfd, name string) (place, error) {
	b, err := decode(name)
	if err != nil {
		return place{}, err
	}
	if filepath.IsAbs(string(b)) || dirfd == "" {
		return t.at(string(b)), nil
	}
	return t.at(filepath.Join(fdPath(dirfd), string(b))), nil
}

// open finds the node of a descriptor. A file that was removed while open has no
// place, and what happens to it does not matter.
func (t *translator) fd(arg string) place { return t.at(fdPath(arg)) }

func (t *translator) add(c call, text string, durable bool, do model.Change) {
	o := model.Op{Begin: c.begin, End: c.end, Do: do, Durable: durable, Text: c.name + " " + text}
	o.Apply(t.now)
	t.log.Ops = append(t.log.Ops, o)
}

// call handles one system call.
func (t *translator) call(c call) error {
	before := len(t.log.Ops)
	err := t.dispatch(c)
	if len(t.log.Ops) > before {
		t.log.Calls++
	}
	return err
}

func (t *translator) dispatch(c call) error {
	switch c.name {
	case "open", "openat", "creat":
		return t.open(c)
	case "write", "pwrite64", "copy_file_range", "sendfile":
		return t.write(c)
	case "lseek":
		if p := t.fd(c.args[0]); p.node != nil {
			off, err := c.number()
			t.pos[p.node] = off
			return err
		}
	case "ftruncate", "truncate", "fallocate":
		return t.resize(c)
	case "fsync", "fdatasync":
		if p := t.fd(c.args[0]); p.node != nil {
			t.add(c, p.text, false, model.Sync{Node: p.node, FS: p.root.FS})
		}
	case "syncfs":
		if p := t.fd(c.args[0]); p.below {
			t.add(c, p.text, false, model.Sync{FS: p.root.FS})
		}
	case "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir":
		return t.names(c)
	case "mkdir", "mkdirat", "symlink", "symlinkat", "mknod", "mknodat":
		return t.create(c)
	case "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat":
		return t.attribute(c)
	case "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr":
		return t.xattr(c)
	case "chdir":
		b, err := decode(c.args[0])
		if err != nil {
			return err
		}
		t.cwd = string(b)
	case "close", "dup", "dup2", "dup3", "fchdir", "sync_file_range", "msync":
		// sync_file_range promises nothing about the medium's cache, and none of the
		// programs maps what it writes.
	default:
		if slices.ContainsFunc(c.args, func(a string) bool { return t.at(fdPath(a)).below }) {
			return errors.New("not known to the recorder")
		}
	}
	return nil
}
