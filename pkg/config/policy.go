package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrNoPolicy says that no policy file exists: nothing can be verified, so
// nothing is installed.
var ErrNoPolicy = errors.New("there is no policy")

// Policy is policy.yaml: whose signatures count. policy/README.md describes it.
type Policy struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Keys       []Key  `yaml:"keys"`
	// Rescue are the keys whose signatures count for the rescue partition, and for
	// nothing else; without any, nothing is accepted there.
	Rescue []Key `yaml:"rescue"`
}

// Key is one public key: PEM in the file itself, or in a file beside it.
type Key struct {
	Name string `yaml:"name"`
	File string `yaml:"file"`
	PEM  string `yaml:"pem"`
}

// LoadPolicy reads the first of the named files that exists, and the key files
// that it names (relative to its folder). Every key has its PEM afterwards.
func LoadPolicy(names ...string) (Policy, error) {
	var p Policy
	name, data, err := first(names)
	if err != nil {
		return p, err
	}
	if data == nil {
		return p, fmt.Errorf("%w: none of %v exists; an image brings its policy in /usr/lib/osctl/policy.yaml", ErrNoPolicy, names)
	}
	d, err := decode(name, data, &p, "Policy")
	if err != nil {
		return p, err
	}
	if len(p.Keys) == 0 {
		return p, d.complain(d.at("keys"), "keys: the list is empty, so nothing could be verified")
	}
	for list, keys := range map[string][]Key{"keys": p.Keys, "rescue": p.Rescue} {
		for i := range keys {
			if err := keys[i].read(filepath.Dir(name)); err != nil {
				key := fmt.Sprintf("%s[%d]", list, i)
				return p, d.blame(d.at(key), fmt.Errorf("%s: %w", key, err))
			}
		}
	}
	return p, nil
}

func (k *Key) read(dir string) error {
	switch {
	case k.Name == "":
		return errors.New("it has no name")
	case (k.File == "") == (k.PEM == ""):
		return fmt.Errorf("key %s: expected is either file or pem", k.Name)
	case k.File == "":
		return nil
	}
	path := k.File
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("key %s: %w", k.Name, err)
	}
	k.PEM = string(data)
	return nil
}
