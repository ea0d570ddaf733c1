package record

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/kapernikov/osctl/test/crash/model"
)

// open handles the calls that open a file, and perhaps make or empty it.
func (t *translator) open(c call) error {
	dirfd, rest := "", c.args
	if c.name == "openat" {
		dirfd, rest = c.args[0], c.args[1:]
	}
	p, err := t.path(dirfd, rest[0])
	if err != nil || !p.below {
		return err
	}
	flags := "O_WRONLY|O_CREAT|O_TRUNC"
	if c.name != "creat" {
		flags = rest[1]
	}
	has := func(name string) bool { return strings.Contains("|"+flags+"|", "|"+name+"|") }
	if p.node == nil && !has("O_CREAT") {
		return nil // a race with another thread, or a path through a symbolic link
	}
	switch {
	case p.node == nil && p.dir == nil:
		return errors.New("made in a directory that is not known")
	case p.node == nil:
		n := t.node(model.File, p.root.FS)
		t.born(n, rest[len(rest)-1])
		p.node = n
		t.add(c, "new "+p.text, false, model.Entries{{Dir: p.dir, Name: p.name, Node: n}})
	case has("O_TRUNC") && p.node.Kind == model.File && len(t.now.Content(p.node)) > 0:
		t.add(c, "empty "+p.text, false, model.Truncate{Node: p.node})
	}
	if has("O_RDONLY") {
		t.pos[p.node] = 0
		return nil
	}
	t.pos[p.node] = 0
	if has("O_APPEND") {
		t.pos[p.node] = int64(len(t.now.Content(p.node)))
	}
	t.dsync[p.node] = has("O_SYNC") || has("O_DSYNC")
	return nil
}

// born gives a new node the attributes that it has from the start. They are in the
// base as well: nothing sees them there before a name leads to the node.
func (t *translator) born(n *model.Node, mode string) {
	attributes := map[string]string{"owner": "0:0"}
	if bits, err := strconv.ParseUint(mode, 8, 32); err == nil && n.Kind != model.Link {
		attributes["mode"] = strconv.FormatUint(bits&0o7777&^umask, 8)
	}
	for name, value := range attributes {
		t.now.SetAttribute(n, name, value)
		t.log.Base.SetAttribute(n, name, value)
	}
}

// umask is that of the recorded programs, which the tests set.
const umask = 0o022

// write handles the calls that put bytes into a file.
func (t *translator) write(c call) error {
	target := c.args[0]
	if c.name == "copy_file_range" {
		target = c.args[2]
	}
	p := t.fd(target)
	if p.node == nil {
		return nil
	}
	n, err := c.number()
	if err != nil {
		return err
	}
	off := t.pos[p.node]
	var data []byte
	switch c.name {
	case "write":
		data, err = decode(c.args[1])
	case "pwrite64":
		if data, err = decode(c.args[1]); err == nil {
			off, err = strconv.ParseInt(c.args[3], 10, 64)
		}
	case "copy_file_range":
		data, err = t.copied(c.args[0], c.args[1], n)
	default:
		data, err = t.copied(c.args[1], c.args[2], n)
	}
	if err != nil {
		return err
	}
	if int64(len(data)) < n {
		return fmt.Errorf("%d bytes of %d are in the trace", len(data), n)
	}
	if n == 0 {
		return nil
	}
	if c.name != "pwrite64" {
		t.pos[p.node] = off + n
	}
	if p.node.Kind == model.Block && (off%model.Sector != 0 || n%model.Sector != 0) {
		return t.padded(c, p, off, data[:n])
	}
	t.add(c, fmt.Sprintf("%s %d at %d", p.text, n, off), t.dsync[p.node], model.Write{Node: p.node, Off: off, Data: data[:n]})
	return nil
}

// padded writes whole sectors where a program wrote less, as the kernel does.
func (t *translator) padded(c call, p place, off int64, data []byte) error {
	first := off / model.Sector * model.Sector
	last := (off + int64(len(data)) + model.Sector - 1) / model.Sector * model.Sector
	whole := make([]byte, last-first)
	v := t.now.Volume(p.node)
	for at := first; at < last; at += model.Sector {
		chunk := v.Chunk(int(at / model.ChunkSize))
		copy(whole[at-first:], chunk[at%model.ChunkSize:][:model.Sector])
	}
	copy(whole[off-first:], data)
	t.add(c, fmt.Sprintf("%s %d at %d", p.text, len(data), off), t.dsync[p.node], model.Write{Node: p.node, Off: first, Data: whole})
	return nil
}

// copied is what a call copied from another descriptor within the kernel.
func (t *translator) copied(from, offset string, n int64) ([]byte, error) {
	if offset != "NULL" {
		return nil, errors.New("copied from a position that the recorder does not follow")
	}
	p := t.fd(from)
	if p.node == nil {
		data, err := os.ReadFile(fdPath(from))
		if err == nil && int64(len(data)) != n && n != 0 {
			err = fmt.Errorf("only a part of %s was copied", fdPath(from))
		}
		return data, err
	}
	data := t.now.Content(p.node)
	begin := min(t.pos[p.node], int64(len(data)))
	t.pos[p.node] = min(begin+n, int64(len(data)))
	return data[begin:t.pos[p.node]], nil
}

// resize handles the calls that change the length of a file.
func (t *translator) resize(c call) error {
	var p place
	size := c.args[len(c.args)-1]
	if c.name == "truncate" {
		var err error
		if p, err = t.path("", c.args[0]); err != nil {
			return err
		}
	} else {
		p = t.fd(c.args[0])
	}
	if p.node == nil {
		return nil
	}
	if c.name == "fallocate" && p.node.Kind != model.Block {
		return errors.New("not known to the recorder")
	}
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	if p.node.Kind == model.Block {
		if c.name == "ftruncate" && t.now.Volume(p.node).Size() == 0 {
			// A file that stands for a disk comes to be.
			v := t.Pool.Zeros(n)
			t.now.SetVolume(p.node, v)
			t.log.Base.SetVolume(p.node, v)
		}
		return nil
	}
	t.add(c, fmt.Sprintf("%s to %d", p.text, n), t.dsync[p.node], model.Truncate{Node: p.node, Size: n})
	return nil
}
