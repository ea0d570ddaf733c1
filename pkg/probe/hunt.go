package probe

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// huntGap is between two rounds of a hunt: processes that were killed take a moment.
const huntGap = 5 * time.Millisecond

// hunt is a command without a control group. Its processes are the descendants of this
// process in other sessions than this one's own: the command is started in a new
// session, and nobody gets from there into another one that exists. What loses its
// parent becomes a child of this process, its subreaper (PR_SET_CHILD_SUBREAPER(2const)).
type hunt struct{ turn chan struct{} }

// hunt waits for its turn: two commands could not be told apart.
func (r *Runner) hunt(ctx context.Context) (whole, error) {
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		<-r.turn
		return nil, err
	}
	return hunt{r.turn}, nil
}

func (h hunt) byGroup() bool { return false }

// prepare has nothing to add: every command is started in a session of its own.
func (h hunt) prepare(*syscall.SysProcAttr) {}

// close gives the turn back. It cannot fail: to be no subreaper is always permitted.
func (h hunt) close() {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) //nolint:errcheck // see above
	<-h.turn
}

// end kills in rounds until a round finds nobody: what is forked between the look and
// the kill is found in the next one.
func (h hunt) end(command int) (killed int, names []string, remain int) {
	seen := map[int]bool{}
	for began := time.Now(); ; {
		list := prey(processes(), command)
		if len(list) == 0 {
			return len(seen), names, 0
		}
		if time.Since(began) > endLimit {
			return len(seen), names, len(list)
		}
		for _, p := range list {
			if !seen[p.pid] && len(names) < mostNames {
				names = append(names, p.name)
			}
			seen[p.pid] = true
			_ = unix.Kill(p.pid, unix.SIGKILL) //nolint:errcheck // it may have ended just now
		}
		time.Sleep(huntGap)
	}
}

// relative is a process as /proc has it.
type relative struct {
	pid, parent, session int
	name                 string
	dead                 bool // it waits to be reaped
}

// prey are the living descendants of this process in other sessions; the dead ones
// that nobody else waits for are reaped.
func prey(all map[int]relative, command int) []relative {
	self := os.Getpid()
	session := all[self].session
	mine := func(p relative) bool {
		for range len(all) {
			switch p.parent {
			case self:
				return true
			case 0, p.pid:
				return false
			}
			next, ok := all[p.parent]
			if !ok {
				return false
			}
			p = next
		}
		return false
	}
	var list []relative
	for _, p := range all {
		if p.pid == self || p.session == session || !mine(p) {
			continue
		}
		switch {
		case !p.dead:
			list = append(list, p)
		case p.parent == self && p.pid != command:
			_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil) //nolint:errcheck // it is dead already
		}
	}
	return list
}

// processes are all of the machine that can be seen.
func processes() map[int]relative {
	all := map[int]relative{}
	dir, err := os.Open("/proc")
	if err != nil {
		return all
	}
	defer dir.Close() //nolint:errcheck // read only
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return all
	}
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if stat, err := os.ReadFile("/proc/" + name + "/stat"); err == nil {
				if p, ok := parseStat(stat); ok && p.pid == pid {
					all[pid] = p
				}
			}
		}
	}
	return all
}

// parseStat reads "pid (name) state ppid pgrp session …" (proc_pid_stat(5)); the name
// may have anything in it, parentheses as well.
func parseStat(stat []byte) (relative, bool) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return relative{}, false
	}
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 4 {
		return relative{}, false
	}
	p := relative{name: strings.ToValidUTF8(string(stat[open+1:end]), "?"), dead: fields[0] == "Z" || fields[0] == "X"}
	var errs [3]error
	p.pid, errs[0] = strconv.Atoi(strings.TrimSpace(string(stat[:open])))
	p.parent, errs[1] = strconv.Atoi(fields[1])
	p.session, errs[2] = strconv.Atoi(fields[3])
	return p, errors.Join(errs[:]...) == nil
}
