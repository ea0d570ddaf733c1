package record

import (
	"errors"
	"strconv"
	"strings"

	"github.com/kapernikov/osctl/test/crash/model"
)

// names handles the calls that change which names lead to a file.
func (t *translator) names(c call) error {
	switch c.name {
	case "rename", "link":
		return t.moved(c, "", c.args[0], "", c.args[1], "")
	case "renameat", "linkat":
		return t.moved(c, c.args[0], c.args[1], c.args[2], c.args[3], "")
	case "renameat2":
		return t.moved(c, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4])
	}
	dirfd, name := "", c.args[0]
	if c.name == "unlinkat" {
		dirfd, name = c.args[0], c.args[1]
	}
	p, err := t.path(dirfd, name)
	if err != nil || !p.below {
		return err
	}
	if p.dir == nil {
		return errors.New("the root itself was removed")
	}
	t.add(c, p.text, false, model.Entries{{Dir: p.dir, Name: p.name}})
	return nil
}

// moved handles a rename, an exchange and a hard link.
func (t *translator) moved(c call, dir1, name1, dir2, name2, flags string) error {
	from, err := t.path(dir1, name1)
	if err != nil {
		return err
	}
	to, err := t.path(dir2, name2)
	if err != nil || !from.below && !to.below {
		return err
	}
	if from.node == nil || to.dir == nil || from.dir == nil {
		return errors.New("moved across the edge of what is recorded")
	}
	entries := model.Entries{{Dir: to.dir, Name: to.name, Node: from.node}}
	switch {
	case strings.HasPrefix(c.name, "link"):
	case strings.Contains(flags, "RENAME_EXCHANGE"):
		entries = append(entries, model.Entry{Dir: from.dir, Name: from.name, Node: to.node})
	default:
		entries = append(entries, model.Entry{Dir: from.dir, Name: from.name})
	}
	t.add(c, from.text+" to "+to.text, false, entries)
	return nil
}

// create handles the calls that make what is no plain file.
func (t *translator) create(c call) error {
	args, target := c.args, ""
	if strings.HasPrefix(c.name, "symlink") {
		b, err := decode(args[0])
		if err != nil {
			return err
		}
		target, args = string(b), args[1:]
	}
	dirfd := ""
	if strings.HasSuffix(c.name, "at") {
		dirfd, args = args[0], args[1:]
	}
	p, err := t.path(dirfd, args[0])
	if err != nil || !p.below {
		return err
	}
	if p.dir == nil {
		return errors.New("made in a directory that is not known")
	}
	n := t.node(model.Dir, p.root.FS)
	mode := ""
	switch {
	case target != "":
		n.Kind, n.Target = model.Link, target
	case strings.HasPrefix(c.name, "mknod"):
		// S_IFCHR|0600, makedev(0, 0)
		kind, bits, _ := strings.Cut(args[1], "|")
		if kind != "S_IFCHR" {
			return errors.New("a node that is no whiteout")
		}
		n.Kind, n.Target, mode = model.Device, "20000:0", bits
	default:
		mode = args[1]
	}
	t.born(n, mode)
	t.add(c, p.text, false, model.Entries{{Dir: p.dir, Name: p.name, Node: n}})
	return nil
}

// attribute handles the calls that change a mode or an owner.
func (t *translator) attribute(c call) error {
	p, args, err := t.subject(c)
	if err != nil || p.node == nil {
		return err
	}
	name, value := "mode", strings.TrimPrefix(args[0], "0")
	if strings.Contains(c.name, "chown") {
		name, value = "owner", args[0]+":"+args[1]
	} else if bits, err := strconv.ParseUint(args[0], 8, 32); err == nil {
		value = strconv.FormatUint(bits, 8)
	}
	t.add(c, p.text+" "+value, false, model.Attribute{Node: p.node, Name: name, Value: value})
	return nil
}

// subject finds what a call of the families chmod, chown and setxattr is about, and
// the arguments that follow.
func (t *translator) subject(c call) (place, []string, error) {
	switch {
	case strings.HasSuffix(c.name, "at") || c.name == "fchmodat2":
		p, err := t.path(c.args[0], c.args[1])
		return p, c.args[2:], err
	case strings.HasPrefix(c.name, "f"): // fchmod, fsetxattr, fremovexattr
		return t.fd(c.args[0]), c.args[1:], nil
	}
	p, err := t.path("", c.args[0])
	return p, c.args[1:], err
}

func (t *translator) xattr(c call) error {
	p, args, err := t.subject(c)
	if err != nil || p.node == nil {
		return err
	}
	name, err := decode(args[0])
	if err != nil {
		return err
	}
	change := model.Attribute{Node: p.node, Name: "xattr:" + string(name), Removed: strings.Contains(c.name, "remove")}
	if !change.Removed {
		value, err := decode(args[1])
		if err != nil {
			return err
		}
		change.Value = string(value)
	}
	t.add(c, p.text, false, change)
	return nil
}
