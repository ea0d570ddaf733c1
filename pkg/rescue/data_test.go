package rescue_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kapernikov/osctl/pkg/disk"
	"github.com/kapernikov/osctl/pkg/rescue"
	"github.com/kapernikov/osctl/test/need"
)

// The data partition is made anew with what is kept; a check mends what is safe and
// says what is not.
func TestData(t *testing.T) {
	need.Long(t)
	debugfs := need.Tool(t, "debugfs")
	device := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(device, 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := rescue.FormatData(ctx, device, map[string][]byte{"osctl/ledger.json": []byte("kept\n")}); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(debugfs, "-R", "cat /osctl/ledger.json", device).Output()
	if err != nil || string(out) != "kept\n" {
		t.Errorf("the ledger is %q, %v", out, err)
	}
	if said, err := rescue.CheckData(ctx, device, false); err != nil || said == "" {
		t.Errorf("a whole file system: %q, %v", said, err)
	}
	// An inode of a folder that is no folder any more loses its entries.
	if out, err := exec.Command(debugfs, "-w", "-R", "set_inode_field /osctl mode 0100644", device).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	if said, err := rescue.CheckData(ctx, device, false); !errors.Is(err, rescue.ErrDamagedData) {
		t.Errorf("a damaged file system: %q, %v", said, err)
	}
	if said, err := rescue.CheckData(ctx, device, true); err != nil {
		t.Errorf("mended all the same: %q, %v", said, err)
	}
	held, err := disk.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := rescue.CheckData(ctx, device, false); !errors.Is(err, disk.ErrBusy) {
		t.Errorf("checking what is in use: %v", err)
	}
	if err := rescue.FormatData(ctx, device, nil); !errors.Is(err, disk.ErrBusy) {
		t.Errorf("formatting what is in use: %v", err)
	}
	held.Close()
	if _, err := rescue.CheckData(ctx, filepath.Join(t.TempDir(), "none"), false); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("without a device: %v", err)
	}
}
