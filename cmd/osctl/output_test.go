package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReboot: each way that does not work is followed by a harder one, and no further.
func TestReboot(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	t.Setenv("PATH", dir+":/bin:/usr/bin")
	for works, want := range map[string]string{
		"reboot":                 "reboot\n",
		"--force reboot":         "reboot\n--force reboot\n",
		"--force --force reboot": "reboot\n--force reboot\n--force --force reboot\n",
	} {
		text := "#!/bin/sh\necho \"$*\" >> " + log + "\n[ \"$*\" = '" + works + "' ]\n"
		if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(text), 0o755); err != nil { // #nosec systemctl is run
			t.Fatal(err)
		}
		if err := reboot(t.Context()); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(log); err != nil || string(got) != want {
			t.Errorf("systemctl was called with %q, %v; want %q", got, err, want)
		}
		if err := os.Remove(log); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte("#!/bin/sh\nexit 3\n"), 0o755); err != nil { // #nosec systemctl is run
		t.Fatal(err)
	}
	if err := reboot(t.Context()); err == nil || !strings.Contains(err.Error(), "rebooting: exit status 3") {
		t.Errorf("error %v", err)
	}
}
