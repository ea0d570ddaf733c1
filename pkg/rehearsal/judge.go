package rehearsal

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kapernikov/osctl/pkg/etc"
)

// outcome is what one check did in one system; Inside writes a line of JSON for each.
type outcome struct {
	Check   string  `json:"check"`
	Running bool    `json:"running,omitempty"` // in the running system; else in the target
	Skipped string  `json:"skipped,omitempty"` // why
	Late    bool    `json:"late,omitempty"`    // it was killed
	Failed  bool    `json:"failed,omitempty"`  // by its exit status
	Seconds float64 `json:"seconds,omitempty"`
	// Lines are what it said.
	Lines []string `json:"lines,omitempty"`
}

// bad reports whether the outcome needs the other system to be judged.
func (o outcome) bad() bool {
	return o.Failed && !o.Late || o.Check == unitsCheck && len(o.Lines) > 0
}

// found reports whether anything is to be explained.
func found(seen []outcome) bool { return slices.ContainsFunc(seen, outcome.bad) }

// judge makes a check of each that there is, in their order. own says of a path below
// /etc whether it is this machine's and not the image's.
func judge(seen []outcome, own func(path string) bool) []Check {
	var list []Check
	for _, name := range checkNames() {
		target := slices.IndexFunc(seen, func(o outcome) bool { return o.Check == name && !o.Running })
		running := slices.IndexFunc(seen, func(o outcome) bool { return o.Check == name && o.Running })
		if target < 0 {
			list = append(list, Check{Name: name, Status: Unfinished, Findings: []string{"the time was over before it began"}})
			continue
		}
		var before *outcome
		if running >= 0 {
			before = &seen[running]
		}
		list = append(list, judgeOne(seen[target], before, own))
	}
	return list
}

func judgeOne(now outcome, before *outcome, own func(string) bool) Check {
	c := Check{Name: now.Check, Seconds: now.Seconds}
	switch {
	case now.Late:
		c.Status, c.Findings = Unfinished, []string{fmt.Sprintf("it had not ended after %.0f s and was killed", now.Seconds)}
	case now.Skipped != "":
		c.Status, c.Findings = Skipped, []string{now.Skipped}
	case now.Check == unitsCheck:
		judgeUnits(&c, now, before, own)
	case !now.Failed:
		c.Status, c.Notes = Passed, now.Lines
	case before != nil && before.Failed && !before.Late:
		c.Status, c.Findings = Known, now.Lines
	default:
		c.Status, c.Findings = Failed, now.Lines
	}
	return c
}

// grave returns what matches the lines by which systemd says that a unit cannot be
// started (src/core/load-fragment.c, service.c, unit.c; src/analyze/analyze-verify-util.c),
// and ours for a unit that is gone. They begin with the unit. What else systemd says, it
// goes on in spite of, or it is about itself.
func grave() *regexp.Regexp {
	return regexp.MustCompile(`^(Unit |/etc/\S+/)?[^\s/]+\.(service|socket|target|mount|automount|timer|path|swap|slice)[: ].*` +
		`(is not executable|Refusing|not found|bad unit (file )?setting|Failed to (create|load|start)|` + goneWords + `)`)
}

// anywhere is a line of systemd's without the place in the file that it is about.
func anywhere(line string) string {
	path, rest, ok := strings.Cut(line, ":")
	place, text, more := strings.Cut(rest, ": ")
	if _, err := strconv.Atoi(place); !ok || !more || err != nil {
		return line
	}
	return path + ": " + text
}

// judgeUnits looks at what systemd says and did not say of the running system: that a
// unit cannot be started, or that it ignores something in one of this machine's own
// files. What it ignores in the image's files is the image maker's affair, and a note.
func judgeUnits(c *Check, now outcome, before *outcome, own func(string) bool) {
	old := map[string]bool{}
	if before != nil {
		for _, line := range before.Lines {
			old[anywhere(line)] = true
		}
	}
	dead := grave()
	for _, line := range now.Lines {
		switch path := firstPath(line); {
		case old[anywhere(line)]:
		case dead.MatchString(line), strings.HasPrefix(path, "/etc/") && own(path):
			c.Findings = append(c.Findings, line)
		default:
			c.Notes = append(c.Notes, line)
		}
	}
	switch {
	case len(c.Findings) > 0:
		c.Status = Failed
	case now.Failed && before != nil && before.Failed:
		c.Status, c.Findings = Known, now.Lines
	case now.Failed:
		// It says nothing of a unit: systemd-analyze itself could not do its work here.
		c.Status, c.Findings, c.Notes = Unfinished, now.Lines, nil
	default:
		c.Status = Passed
	}
}

// firstPath is the file that a line begins with.
func firstPath(line string) string {
	path, _, _ := strings.Cut(line, ":")
	if !filepath.IsAbs(path) {
		return ""
	}
	return path
}

// owned tells what this machine has of its own.
func owned(changes []etc.Change) func(string) bool {
	return func(path string) bool {
		return slices.ContainsFunc(changes, func(c etc.Change) bool { return filepath.Join("/etc", c.Path) == path })
	}
}

// clashes are the changes of /etc that a failed check is about: those that its findings
// name, and those among the files it reads which hide news of the image.
func clashes(c Check, changes []etc.Change) []etc.Change {
	said := strings.Join(c.Findings, "\n")
	var list []etc.Change
	for _, change := range changes {
		path := filepath.Join("/etc", change.Path)
		reads := slices.ContainsFunc(configuration(c.Name), func(prefix string) bool {
			return strings.HasPrefix(change.Path, prefix)
		})
		if names(said, path) || reads && (change.Shadows != "" || c.Name == unitsCheck && names(said, unitOf(change.Path))) {
			list = append(list, change)
		}
	}
	return list
}

// unitOf is the unit that a file belongs to: systemd calls a unit by its name, whichever
// file of it is wrong. A link that enables it is none of these.
func unitOf(path string) string {
	dir, name := filepath.Base(filepath.Dir(path)), filepath.Base(path)
	switch filepath.Ext(dir) {
	case ".d":
		return strings.TrimSuffix(dir, ".d")
	case ".wants", ".requires":
		return filepath.Join("/etc", path)
	}
	return name
}

// names reports whether a text has a path, and not as the beginning of another one.
func names(text, path string) bool {
	for {
		at := strings.Index(text, path)
		if at < 0 {
			return false
		}
		text = text[at+len(path):]
		if text == "" || !strings.ContainsAny(text[:1], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/@") &&
			(text[0] != '.' || len(text) == 1 || text[1] == ' ' || text[1] == '\n') {
			return true
		}
	}
}

// Describe tells of a clash, for people.
func Describe(c etc.Change) string {
	path := filepath.Join("/etc", c.Path)
	mine := map[etc.Kind]string{
		etc.Added: "was added on this machine", etc.Changed: "was changed on this machine",
		etc.Removed: "was removed on this machine", etc.Same: "is a copy of the running image's",
	}[c.Kind]
	theirs := map[etc.Kind]string{
		etc.Added: "hides " + path + " of the new image, which is new there", etc.Changed: "hides " + path + " of the new image, which differs from the running one's",
		etc.Removed: "the new image has no such file any more",
	}[c.Shadows]
	if theirs == "" {
		return path + " " + mine
	}
	return path + " " + mine + ", and " + theirs
}
