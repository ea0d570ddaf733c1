package vm

import (
	"bytes"
	"context"
	"io"
	"regexp"
	"strings"
	"sync"
)

// console collects what a machine prints on its serial line, without terminal
// control sequences, and wakes who waits for a line of it.
type console struct {
	log  io.WriteCloser // the raw bytes
	copy io.Writer      // the cleaned text, if wanted

	mu      sync.Mutex
	text    []byte        // everything so far, cleaned
	seen    int           // where the next wait begins
	changed chan struct{} // closed and replaced when text grows or ends
	ended   bool
	filter  filter
}

func newConsole(log io.WriteCloser, copy io.Writer) *console {
	return &console{log: log, copy: copy, changed: make(chan struct{})}
}

// Write takes what QEMU printed. It never fails: a console that stops being
// read would stop the machine.
func (c *console) Write(p []byte) (int, error) {
	c.log.Write(p)
	c.mu.Lock()
	before := len(c.text)
	c.text = c.filter.clean(c.text, p)
	fresh := c.text[before:]
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	if c.copy != nil {
		c.copy.Write(fresh)
	}
	return len(p), nil
}

// close wakes everyone who waits: there will be no more.
func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *console) closeLog() error { return c.log.Close() }

// wait returns the first line after the last one it returned that matches.
func (c *console) wait(ctx context.Context, line *regexp.Regexp) (string, error) {
	from := -1
	for {
		c.mu.Lock()
		if from < 0 {
			from = c.seen
		}
		found, next, ok := match(c.text, from, line)
		if ok {
			c.seen = next
		}
		from = next
		ended, changed := c.ended, c.changed
		c.mu.Unlock()
		switch {
		case ok:
			return found, nil
		case ended:
			return "", ErrEnded
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// match looks for a matching line of text[from:]. It returns where to go on:
// behind the match, or at the beginning of the last line, which may grow.
func match(text []byte, from int, line *regexp.Regexp) (found string, next int, ok bool) {
	for {
		end := bytes.IndexByte(text[from:], '\n')
		candidate := text[from:]
		if end >= 0 {
			candidate = candidate[:end]
		}
		if at := line.FindIndex(candidate); at != nil {
			return string(candidate), from + len(candidate), true
		}
		if end < 0 {
			return "", from, false
		}
		from += end + 1
	}
}

// tail is the last lines of the text.
func (c *console) tail(lines int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := strings.Split(strings.TrimRight(string(c.text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// filter drops terminal control sequences (ECMA-48: ESC, then "[" with
// parameters and a final byte, or one other byte) and control characters other
// than the line feed. It may be fed in pieces.
type filter struct {
	state filterState
}

type filterState int

const (
	plain filterState = iota
	escaped
	control
)

// clean appends the readable part of p.
func (f *filter) clean(text, p []byte) []byte {
	for _, b := range p {
		switch {
		case b == 0x1b:
			f.state = escaped
		case f.state == escaped && b == '[':
			f.state = control
		case f.state == escaped:
			f.state = plain
		case f.state == control:
			if b >= 0x40 && b <= 0x7e {
				f.state = plain
			}
		case b == '\n' || b == '\t' || b >= 0x20 && b != 0x7f:
			text = append(text, b)
		}
	}
	return text
}
