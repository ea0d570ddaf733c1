package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Health is health.yaml: what the gate expects of this machine. docs/health.md
// describes every key.
type Health struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	// Deadline is how long a new system may take to become healthy.
	Deadline Duration `yaml:"deadline"`
	// Soak is how long it must then stay so.
	Soak Duration `yaml:"soak"`
	// Retry is the gap between two runs of a script or a probe.
	Retry Duration `yaml:"retry"`
	// Network is what a route or a port that is gone means: required is that the gate
	// is red, wanted that it is reported, ignore that nobody looks.
	Network string  `yaml:"network"`
	Units   Units   `yaml:"units"`
	Scripts Scripts `yaml:"scripts"`
	// Probes are what else is asked.
	Probes []Probe `yaml:"probes"`
}

// Units are systemd's units as the gate sees them.
type Units struct {
	// Required must be active; full names.
	Required []string `yaml:"required"`
	// Tolerated may fail; patterns as of path.Match.
	Tolerated []string `yaml:"tolerated"`
}

// Scripts are those in greenboot's directories.
type Scripts struct {
	// Folders have the directories, the image's own first.
	Folders []string `yaml:"folders"`
	// Timeout is how long one of them may take.
	Timeout Duration `yaml:"timeout"`
}

// Probe is one question to the machine: exactly one of Exec, Shell, HTTP and TCP.
type Probe struct {
	Name string `yaml:"name"`
	// Level is required, wanted, or empty for required.
	Level string `yaml:"level"`
	// Exec is a program and its arguments, Shell a text for /bin/sh.
	Exec  []string `yaml:"exec"`
	Shell string   `yaml:"shell"`
	// HTTP is a URL.
	HTTP string `yaml:"http"`
	// Status is the one that the answer has to have; 0 is any of 200 to 299.
	Status int `yaml:"status"`
	// Contains is a text, Matches an expression of package regexp, for the body.
	Contains string `yaml:"contains"`
	Matches  string `yaml:"matches"`
	// TCP is host:port.
	TCP string `yaml:"tcp"`
	// Timeout is how long one answer may take; 0 is 10 s.
	Timeout Duration `yaml:"timeout"`
	// Within is how long it may take until it holds for the first time; 0 is the
	// deadline.
	Within Duration `yaml:"within"`
}

// HealthFile is what the gate expects with the file that says so.
type HealthFile struct {
	Health
	// Path is the file's name; empty where there is none.
	Path     string
	document document
}

// HealthDefaults are what the gate expects without a file.
func HealthDefaults() Health {
	return Health{
		Deadline: Duration(5 * time.Minute), Soak: Duration(30 * time.Second), Retry: Duration(5 * time.Second), Network: "required",
		Scripts: Scripts{Folders: []string{"/usr/lib/greenboot", "/etc/greenboot"}, Timeout: Duration(time.Minute)},
	}
}

// LoadHealth reads the first of the named files that exists over the defaults. With an
// error, what it returns are the defaults.
func LoadHealth(names ...string) (HealthFile, error) {
	f := HealthFile{Health: HealthDefaults()}
	name, data, err := first("expectations of the gate", names)
	if err != nil || data == nil {
		return f, err
	}
	got, err := parseHealth(name, data)
	if err != nil {
		return f, err
	}
	return got, nil
}

func parseHealth(name string, data []byte) (f HealthFile, err error) {
	f = HealthFile{Health: HealthDefaults(), Path: name}
	if f.document, err = decode(name, data, &f.Health, "Gate"); err != nil {
		return f, err
	}
	if !f.document.has("scripts.timeout") {
		f.Scripts.Timeout = min(f.Scripts.Timeout, f.Deadline)
	}
	return f, f.check()
}

// complain is an error about a key.
func (f HealthFile) complain(key, format string, args ...any) error {
	return f.document.blame(f.document.at(key), errors.New(key+": "+fmt.Sprintf(format, args...)))
}

func (f HealthFile) check() error {
	if !slices.Contains([]string{"required", "wanted", "ignore"}, f.Network) {
		return f.complain("network", "%q; allowed are required, wanted and ignore", f.Network)
	}
	if f.Soak >= f.Deadline {
		return f.complain("soak", "%v; it has to be less than the deadline, %v", time.Duration(f.Soak), time.Duration(f.Deadline))
	}
	if err := f.within("scripts.timeout", f.Scripts.Timeout); err != nil {
		return err
	}
	for i, name := range f.Units.Required {
		if !unitName(name) {
			return f.complain(fmt.Sprintf("units.required[%d]", i), "%q is no full name of a unit; write for example ssh.service", name)
		}
	}
	for i, pattern := range f.Units.Tolerated {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			return f.complain(fmt.Sprintf("units.tolerated[%d]", i), "%q is no pattern; write for example apt-*.service", pattern)
		}
	}
	for i, folder := range f.Scripts.Folders {
		if !filepath.IsAbs(folder) {
			return f.complain(fmt.Sprintf("scripts.folders[%d]", i), "%q; expected is an absolute path", folder)
		}
	}
	names := map[string]bool{}
	for i, p := range f.Probes {
		at := fmt.Sprintf("probes[%d]", i)
		if err := f.checkProbe(at, p); err != nil {
			return err
		}
		if names[p.Name] {
			return f.complain(at+".name", "%q is the name of another probe as well", p.Name)
		}
		names[p.Name] = true
	}
	return nil
}

// within refuses a time that nobody will live to see.
func (f HealthFile) within(key string, d Duration) error {
	if d > f.Deadline {
		return f.complain(key, "%v; it may not be more than the deadline, %v", time.Duration(d), time.Duration(f.Deadline))
	}
	return nil
}

func unitName(name string) bool {
	dot := strings.LastIndexByte(name, '.')
	return dot > 0 && dot < len(name)-1 && !strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r <= ' ' || r > '~' })
}

func (f HealthFile) checkProbe(at string, p Probe) error {
	kinds := 0
	for key, given := range map[string]bool{"exec": p.Exec != nil, "shell": p.Shell != "", "http": p.HTTP != "", "tcp": p.TCP != ""} {
		if given || f.document.has(at+"."+key) {
			kinds++
		}
	}
	switch {
	case p.Name == "" || strings.ContainsFunc(p.Name, unicode.IsControl):
		return f.complain(at+".name", "%q; expected is a name in one line, by which people know it", p.Name)
	case kinds != 1:
		return f.complain(at, "probe %s has %d of exec, shell, http and tcp; expected is one", p.Name, kinds)
	case !slices.Contains([]string{"", "required", "wanted"}, p.Level) || p.Level == "" && f.document.has(at+".level"):
		return f.complain(at+".level", "%q; allowed are required and wanted", p.Level)
	}
	if err := errors.Join(f.within(at+".timeout", p.Timeout), f.within(at+".within", p.Within)); err != nil {
		return err
	}
	switch {
	case f.document.has(at + ".exec"):
		if len(p.Exec) == 0 || p.Exec[0] == "" {
			return f.complain(at+".exec", "it names no program")
		}
		if i := slices.IndexFunc(p.Exec, hasNul); i >= 0 {
			return f.complain(fmt.Sprintf("%s.exec[%d]", at, i), "it has a NUL character")
		}
	case f.document.has(at + ".shell"):
		if strings.TrimSpace(p.Shell) == "" || hasNul(p.Shell) {
			return f.complain(at+".shell", "it is empty, or has a NUL character")
		}
	case f.document.has(at + ".tcp"):
		if err := address(p.TCP); err != nil {
			return f.complain(at+".tcp", "%v", err)
		}
	}
	return f.checkAnswer(at, p)
}

func hasNul(text string) bool { return strings.ContainsRune(text, 0) }

// address checks host:port.
func address(text string) error {
	host, port, err := net.SplitHostPort(text)
	if n, bad := strconv.Atoi(port); err != nil || bad != nil || host == "" || n < 1 || n > 65535 {
		return fmt.Errorf("%q is no address; write for example 127.0.0.1:5432 or [::1]:5432", text)
	}
	return nil
}

// checkAnswer checks what only an answer over HTTP has.
func (f HealthFile) checkAnswer(at string, p Probe) error {
	if !f.document.has(at + ".http") {
		for _, key := range []string{"status", "contains", "matches"} {
			if f.document.has(at + "." + key) {
				return f.complain(at+"."+key, "it is for probes with http only")
			}
		}
		return nil
	}
	u, err := url.Parse(p.HTTP)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return f.complain(at+".http", "%q is no URL; write for example http://127.0.0.1:8080/health", p.HTTP)
	case u.User != nil:
		return f.complain(at+".http", "it has a name or a password in it, which everybody on the machine could read in reasons; ask by shell")
	case f.document.has(at+".status") && (p.Status < 100 || p.Status > 599):
		return f.complain(at+".status", "%d; allowed are 100 to 599", p.Status)
	case f.document.has(at+".contains") && f.document.has(at+".matches"):
		return f.complain(at+".matches", "it has contains already; expected is one of them")
	case f.document.has(at+".contains") && p.Contains == "":
		return f.complain(at+".contains", "it is empty; leave it out if the body does not matter")
	case f.document.has(at+".matches") && p.Matches == "":
		return f.complain(at+".matches", "it is empty; leave it out if the body does not matter")
	}
	if _, err := regexp.Compile(p.Matches); err != nil {
		return f.complain(at+".matches", "%v", err)
	}
	return nil
}
