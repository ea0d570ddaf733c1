package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The directories of greenboot, below each of its folders.
const (
	RequiredDir = "check/required.d" // what must succeed for the gate to be green
	WantedDir   = "check/wanted.d"   // what is only reported
	GreenDir    = "green.d"          // what runs after a green gate
	RedDir      = "red.d"            // what runs after a red gate
)

// GreenbootFolders are where greenboot has its directories: the image's own, and the
// machine's.
func GreenbootFolders() []string { return []string{"/usr/lib/greenboot", "/etc/greenboot"} }

// Script is a file in one of the directories.
type Script struct {
	Name string   // directory and file, as in "required.d/10_disk.sh"
	Args []string // how to run it
}

// Scripts are what is to be run of one directory in all of the folders: those of the
// first folder first, each by name. A file replaces the one of the same name in a folder
// before, an empty one or a link to /dev/null for good. As greenboot has it, what ends
// in .sh is run by bash, whether it may be executed or not, and other files must be
// executable. Names in disabled are left out.
//
// A folder that does not exist has no scripts; one that cannot be read is an error.
func Scripts(folders []string, dir string, disabled []string) ([]Script, error) {
	type file struct {
		path string
		mode fs.FileMode
		size int64
	}
	var order []string
	found := map[string]file{}
	for _, folder := range folders {
		entries, err := os.ReadDir(filepath.Join(folder, dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the scripts: %w", err)
		}
		for _, e := range entries {
			path := filepath.Join(folder, dir, e.Name())
			info, err := os.Stat(path)
			if err != nil {
				return nil, fmt.Errorf("reading the scripts: %w", err)
			}
			if info.IsDir() || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			// One that replaces another runs when its own folder's turn comes.
			order = slices.DeleteFunc(order, func(name string) bool { return name == e.Name() })
			order = append(order, e.Name())
			found[e.Name()] = file{path, info.Mode(), info.Size()}
		}
	}
	var list []Script
	for _, name := range order {
		f := found[name]
		if !f.mode.IsRegular() || f.size == 0 || slices.Contains(disabled, name) {
			continue
		}
		args := []string{f.path}
		switch executable := f.mode&0o111 != 0; {
		case filepath.Ext(name) == ".sh":
			args = shell(f.path, executable)
		case !executable:
			continue
		}
		list = append(list, Script{filepath.Join(filepath.Base(dir), name), args})
	}
	return list, nil
}

// shell is how to run a script: by bash, as greenboot does, or where there is none as
// the file itself says, else by the shell that there is.
func shell(path string, executable bool) []string {
	if bash, err := lookUp("bash"); err == nil {
		return []string{bash, path}
	}
	if executable {
		return []string{path}
	}
	return []string{"/bin/sh", path}
}

// Disabled reads greenboot.conf and returns the names in its DISABLED_HEALTHCHECKS. It
// is a shell script, of which only that one assignment of plain words is understood; an
// error says that there is one and it is something else. A file that does not exist
// disables nothing.
func Disabled(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading which scripts are disabled: %w", err)
	}
	names, err := parseDisabled(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return names, nil
}

// errDisabled is worded for people who know greenboot.
var errDisabled = errors.New(`only DISABLED_HEALTHCHECKS=("one.sh" "two.sh") is understood, with names that are no patterns and no variables`)

// parseDisabled finds the assignment, of which the last one counts, as in a shell.
func parseDisabled(text string) ([]string, error) {
	const variable = "DISABLED_HEALTHCHECKS"
	var names []string
	open := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !open {
			rest, ok := strings.CutPrefix(line, variable)
			if !ok {
				continue
			}
			if line, ok = strings.CutPrefix(rest, "=("); !ok {
				return nil, errDisabled
			}
			names, open = nil, true
		}
		words, more, err := parseWords(line)
		if err != nil {
			return nil, err
		}
		names, open = append(names, words...), more
	}
	if open {
		return nil, errDisabled
	}
	return names, nil
}

// parseWords reads words until the closing parenthesis, a comment or the end of the
// line; more is that the list goes on.
func parseWords(line string) (words []string, more bool, err error) {
	for {
		line = strings.TrimLeft(line, " \t")
		switch {
		case line == "" || line[0] == '#':
			return words, true, nil
		case line[0] == ')':
			if rest := strings.TrimSpace(line[1:]); rest != "" && rest[0] != '#' && rest[0] != ';' {
				return nil, false, errDisabled
			}
			return words, false, nil
		case line[0] == '"' || line[0] == '\'':
			word, rest, ok := strings.Cut(line[1:], line[:1])
			if !ok || !plain(word) {
				return nil, false, errDisabled
			}
			words, line = append(words, word), rest
		default:
			end := strings.IndexAny(line, " \t)")
			if end < 0 {
				end = len(line)
			}
			if !plain(line[:end]) {
				return nil, false, errDisabled
			}
			words, line = append(words, line[:end]), line[end:]
		}
	}
}

// plain reports whether a word means itself.
func plain(word string) bool {
	return word != "" && !strings.ContainsAny(word, "$`\\*?[]{}~()<>|&;\"'")
}
