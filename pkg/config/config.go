// Package config reads the YAML files of the machine: osctl.yaml, policy.yaml and
// health.yaml. Unknown keys, wrong types and wrong values are errors that name
// file, line and what is allowed.
//
// It only parses: it applies no defaults that decide about trust, opens no device
// and is imported by cmd/osctl alone, which hands the values to the packages that
// act on them.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/goccy/go-yaml"
)

// apiVersion is the version of all formats.
const apiVersion = "osctl.kapernikov.com/v1"

// ErrInvalid says that a file is there and wrong.
var ErrInvalid = errors.New("invalid configuration")

// Auto stands for "find out on this machine".
const Auto = "auto"

// Config is osctl.yaml. docs/configuration.md describes every key.
type Config struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	// Product must equal the product of an image.
	Product string `yaml:"product"`
	// Reference is what "osctl upgrade" without an argument installs.
	Reference string `yaml:"reference"`
	// Slots are devices or files; "auto" finds the partitions rootfsA, rootfsB
	// and rescue.
	Slots Slots `yaml:"slots"`
	// BootedSlot is A, B, rescue or auto (from the kernel command line).
	BootedSlot string `yaml:"bootedSlot"`
	// Env are the two copies of the boot state.
	Env []string `yaml:"env"`
	// Policy is the file that says whose signatures count; empty means
	// /etc/osctl/policy.yaml or, without that, the image's own.
	Policy string `yaml:"policy"`
	// StateDir holds the ledger.
	StateDir string `yaml:"stateDir"`
	// EtcDir holds A/upper and B/upper; empty means that /etc is no overlay.
	EtcDir string `yaml:"etcDir"`
	// RuntimeDir is for what lasts until the next boot: the lock and reports.
	RuntimeDir string `yaml:"runtimeDir"`
	// Metrics is the file for Prometheus; empty means metrics/osctl.prom in RuntimeDir.
	Metrics string `yaml:"metrics"`
	// Tries is how many boots a new system gets, 1 to 9.
	Tries      int        `yaml:"tries"`
	Containerd Containerd `yaml:"containerd"`
	Systemd    Systemd    `yaml:"systemd"`
	// Health is the file that says what the gate expects; empty means
	// /etc/osctl/health.yaml or, without that, the image's own.
	Health string `yaml:"health"`
}

// Slots are the devices of the slots, and of the rescue partition.
type Slots struct {
	A      string `yaml:"A"`
	B      string `yaml:"B"`
	Rescue string `yaml:"rescue"`
}

// Containerd says where the daemon listens.
type Containerd struct {
	Address string `yaml:"address"`
	// Namespace holds osctl's own content.
	Namespace string `yaml:"namespace"`
	// HostsDir is the certs.d folder.
	HostsDir string `yaml:"hostsDir"`
}

// Systemd says which system manager to ask.
type Systemd struct {
	// Address is its private D-Bus socket; empty means the one that runs this machine.
	Address string `yaml:"address"`
}

// Duration is a time.Duration written as in Go: 30s, 5m.
type Duration time.Duration

// UnmarshalYAML parses a duration.
func (d *Duration) UnmarshalYAML(text []byte) error {
	var s string
	if err := yaml.Unmarshal(text, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	if err != nil || v <= 0 {
		return fmt.Errorf("%q is no duration; write for example 30s or 5m", s)
	}
	*d = Duration(v)
	return nil
}

func (*Duration) spelling() string { return "a duration such as 30s or 5m" }

// Defaults is the configuration of the reference machine.
func Defaults() Config {
	return Config{
		Slots: Slots{A: Auto, B: Auto, Rescue: Auto}, BootedSlot: Auto,
		Env:      []string{"/efi/osctl/a/grubenv", "/efi/osctl/b/grubenv"},
		StateDir: "/data/osctl", EtcDir: "/data/etc", RuntimeDir: "/run/osctl", Tries: 3,
		Containerd: Containerd{Address: "/run/containerd/containerd.sock", Namespace: "osctl", HostsDir: "/etc/containerd/certs.d"},
	}
}

// Load reads the first of the named files that exists over the defaults. The
// image's file comes last in the list, the one in /etc first.
func Load(names ...string) (Config, error) {
	c := Defaults()
	name, data, err := first("configuration", names)
	if err != nil || data == nil {
		return c, err
	}
	d, err := decode(name, data, &c, "Config")
	if err != nil {
		return c, err
	}
	return c, c.check(d)
}

// first reads the first file that exists; none is no error here.
func first(what string, names []string) (string, []byte, error) {
	for _, name := range names {
		data, err := readFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return name, nil, fmt.Errorf("reading the %s: %w", what, err)
		}
		return name, data, nil
	}
	return "", nil, nil
}

// maxFile is the largest file that is read, in bytes: far more than a person writes.
const maxFile = 1 << 20

// readFile reads a file that is small.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%w: %s has more than %d bytes", ErrInvalid, name, maxFile)
	}
	return data, err
}

// header is what all formats begin with.
type header struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
}

// decode fills into, which points to a struct, from a file of the given kind.
func decode(name string, data []byte, into any, kind string) (document, error) {
	d, err := parse(name, data)
	if err != nil {
		return d, err
	}
	var h header
	if err := yaml.Unmarshal(data, &h); err != nil {
		return d, d.explain(err)
	}
	if h.APIVersion != apiVersion || h.Kind != kind {
		return d, d.complain(nil, fmt.Sprintf("it has apiVersion %q and kind %q, expected are %q and %q", h.APIVersion, h.Kind, apiVersion, kind))
	}
	if err := d.check(d.root, reflect.TypeOf(into).Elem(), ""); err != nil {
		return d, err
	}
	if err := yaml.UnmarshalWithOptions(data, into, yaml.Strict(), yaml.DisallowUnknownField()); err != nil {
		return d, d.explain(err)
	}
	return d, nil
}

func (c Config) check(d document) error {
	complain := func(key, text string) error { return d.complain(d.at(key), key+": "+text) }
	switch {
	case c.Tries < 1 || c.Tries > 9:
		return complain("tries", fmt.Sprintf("%d; allowed are 1 to 9", c.Tries))
	case len(c.Env) != 2:
		return complain("env", fmt.Sprintf("%d files; expected are two copies", len(c.Env)))
	case !slices.Contains([]string{Auto, "A", "B", "rescue"}, c.BootedSlot):
		return complain("bootedSlot", fmt.Sprintf("%q; allowed are auto, A, B and rescue", c.BootedSlot))
	}
	for key, path := range map[string]string{
		"env[0]": c.Env[0], "env[1]": c.Env[1], "stateDir": c.StateDir, "runtimeDir": c.RuntimeDir,
		"containerd.address": c.Containerd.Address, "metrics": c.Metrics, "health": c.Health,
	} {
		if path == "" && (key == "metrics" || key == "health") {
			continue
		}
		if !filepath.IsAbs(path) {
			return complain(key, fmt.Sprintf("%q; expected is an absolute path", path))
		}
	}
	return nil
}
