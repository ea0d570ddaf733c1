package crash

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kapernikov/osctl/pkg/grubenv"
	"github.com/kapernikov/osctl/test/crash/model"
	"github.com/kapernikov/osctl/test/crash/record"
	"github.com/kapernikov/osctl/test/need"
)

// peer is another program that changes a boot loader's variables: from slot A
// without a counter to slot B with three tries, in one go.
type peer struct {
	name  string
	tools []string
	// prepare makes the files below dir/boot and returns the command that changes
	// them, and where it sees dir (empty: where it is).
	prepare func(t *testing.T, dir string) (command *exec.Cmd, as string)
	// read returns the variables as the boot loader finds them; not ok if it finds
	// none.
	read func(t *testing.T, j *judge, dir string) (string, bool)
}

// What the variables are before and after.
const valuesBefore, valuesAfter = "A 0", "B 3"

// found counts what a boot loader finds after a cut.
type found struct{ states, none, mixed, lost int }

// TestPeers runs the same cuts over what other updaters use to write the variables
// of a boot loader. Nothing is asserted of them: the table is the result.
func TestPeers(t *testing.T) {
	need.Long(t)
	need.Root(t)
	s := newSite(t)
	j := newJudge(s, t)
	t.Logf("%-42s %7s %9s %7s %12s", "program", "states", "no state", "mixed", "lost update")
	own := j.ownCopies(t)
	t.Logf("%-42s %7d %9d %7d %12d", "osctl, two copies on FAT", own.states, own.none, own.mixed, own.lost)
	if own.none+own.mixed+own.lost > 0 {
		t.Error("osctl is no better")
	}
	for _, p := range []peer{editenv(), setenv("one copy", 1), setenv("two copies", 2), swupdate()} {
		for _, tool := range p.tools {
			need.Tool(t, tool)
		}
		for _, fs := range []model.FS{model.FAT, model.Ext4} {
			f := p.explore(t, j, fs)
			t.Logf("%-42s %7d %9d %7d %12d", p.name+map[model.FS]string{model.FAT: ", on FAT", model.Ext4: ", on ext4"}[fs],
				f.states, f.none, f.mixed, f.lost)
			if f.states == 0 {
				t.Errorf("%s: nothing was explored", p.name)
			}
		}
	}
}

// ownCopies is the same for what osctl writes to the ESP when it arms a slot.
func (j *judge) ownCopies(t *testing.T) found {
	t.Helper()
	var f found
	for _, o := range operations(j.site) {
		if o.name != "rollback to the proven slot" {
			continue
		}
		r := j.record(&o)
		seen := map[[sha256.Size]byte]bool{}
		_, err := model.Explore(r.log.Base, r.log.Ops, bounds(), func(s model.State, c model.Cut) error {
			_, err := j.state(&o, r, r.world, s, c.Before == "the end")
			if key := s.Hash(r.world.Nodes["efi"]); !seen[key] {
				seen[key] = true
				f.states++
			}
			switch {
			case errors.Is(err, errBricked):
				f.none++
			case errors.Is(err, errLostUpdate):
				f.lost++
			case err != nil:
				f.mixed++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (p peer) explore(t *testing.T, j *judge, fs model.FS) found {
	t.Helper()
	dir := t.TempDir()
	j.writeFile(filepath.Join(dir, "boot", "grub", ".keep"), nil)
	cmd, as := p.prepare(t, dir)
	if got, ok := p.read(t, j, dir); !ok || got != valuesBefore {
		t.Fatalf("%s: before, the boot loader finds %q", p.name, got)
	}
	world, base, err := record.Read(dir, j.pool, record.Root{Name: "boot", FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	world.As = as
	log, err := world.Run(t.Context(), base, cmd)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := p.read(t, j, dir); !ok || got != valuesAfter {
		t.Fatalf("%s: afterwards, the boot loader finds %q", p.name, got)
	}
	var f found
	seen := map[[sha256.Size]byte]string{}
	lost := map[[sha256.Size]byte]bool{}
	_, err = model.Explore(log.Base, log.Ops, bounds(), func(s model.State, c model.Cut) error {
		key := s.Hash(world.List()...)
		got, known := seen[key]
		if !known {
			got = p.look(t, j, world, s)
			seen[key] = got
			f.states++
			switch got {
			case valuesBefore, valuesAfter:
			case "":
				f.none++
			default:
				f.mixed++
			}
		}
		if c.Before == "the end" && got == valuesBefore && !lost[key] {
			lost[key] = true
			f.lost++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// look puts a state into a folder and asks the boot loader.
func (p peer) look(t *testing.T, j *judge, w *record.World, s model.State) string {
	t.Helper()
	dir := t.TempDir()
	if err := w.Put(s, dir); err != nil {
		t.Fatal(err)
	}
	got, ok := p.read(t, j, dir)
	if !ok {
		return ""
	}
	return got
}

// readByGrub is load_env on the one file that such a program keeps.
func readByGrub(t *testing.T, j *judge, dir string) (string, bool) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "boot", "grub", "grubenv"))
	if err != nil {
		data = nil
	}
	if err := j.grub.SetCopy(0, data); err != nil {
		t.Fatal(err)
	}
	values, ok, err := j.grub.Values(t.Context(), "bootslot", "counter")
	if err != nil {
		t.Fatal(err)
	}
	return values, ok
}

func mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// editenv is grub-editenv, which RAUC calls for GRUB, and many a script.
func editenv() peer {
	return peer{name: "grub-editenv (also RAUC's for GRUB)", tools: []string{"grub-editenv"}, read: readByGrub,
		prepare: func(t *testing.T, dir string) (*exec.Cmd, string) {
			t.Helper()
			file := filepath.Join(dir, "boot", "grub", "grubenv")
			mustRun(t, "grub-editenv", file, "create")
			mustRun(t, "grub-editenv", file, "set", "bootslot=A", "counter=0")
			cmd := exec.Command("grub-editenv", file, "set", "bootslot=B", "counter=3")
			cmd.Dir = "/"
			return cmd, ""
		}}
}

// setenv is libubootenv's fw_setenv with an environment of 16 KiB in files.
func setenv(how string, copies int) peer {
	config := func(dir string) string { return filepath.Join(dir, "fw_env.config") }
	write := func(t *testing.T, dir string) {
		t.Helper()
		var text string
		for i := range copies {
			text += fmt.Sprintf("%s 0x0 0x4000\n", filepath.Join(dir, "boot", fmt.Sprintf("uboot%d.env", i)))
		}
		if err := os.WriteFile(config(dir), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script := func(t *testing.T, dir, text string) string {
		t.Helper()
		path := filepath.Join(dir, "script")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return peer{name: "fw_setenv (libubootenv), " + how, tools: []string{"fw_setenv", "fw_printenv"},
		prepare: func(t *testing.T, dir string) (*exec.Cmd, string) {
			t.Helper()
			write(t, dir)
			for i := range copies {
				if err := os.WriteFile(filepath.Join(dir, "boot", fmt.Sprintf("uboot%d.env", i)), make([]byte, 0x4000), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "defaults"), []byte("bootslot=X\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 { // so that both copies are whole
				mustRun(t, "fw_setenv", "-c", config(dir), "-f", filepath.Join(dir, "defaults"), "-s", script(t, dir, "bootslot=A\ncounter=0\n"))
			}
			cmd := exec.Command("fw_setenv", "-c", config(dir), "-s", script(t, dir, "bootslot=B\ncounter=3\n"))
			cmd.Dir = "/"
			return cmd, ""
		},
		read: func(t *testing.T, _ *judge, dir string) (string, bool) {
			t.Helper()
			write(t, dir)
			out, err := exec.Command("fw_printenv", "-c", config(dir), "-n", "bootslot").Output()
			slot := strings.TrimSpace(string(out))
			if err != nil || slot == "" {
				return "", false
			}
			out, _ = exec.Command("fw_printenv", "-c", config(dir), "-n", "counter").Output() //nolint:errcheck // empty then
			return slot + " " + strings.TrimSpace(string(out)), true
		}}
}

// swupdate is SWUpdate with its own writer for GRUB, in a namespace where /boot is
// the folder.
func swupdate() peer {
	return peer{name: "swupdate, its writer for GRUB", tools: []string{"swupdate", "openssl"},
		read: readByGrub,
		prepare: func(t *testing.T, dir string) (*exec.Cmd, string) {
			t.Helper()
			// Without the comment that grub-editenv puts into a new file: SWUpdate takes
			// it for a part of the first variable's name.
			var block grubenv.Block
			err := errors.Join(block.Set("bootslot", "A"), block.Set("counter", "0"))
			data, err2 := block.Encode()
			err = errors.Join(err, err2, os.WriteFile(filepath.Join(dir, "boot", "grub", "grubenv"), data, 0o600))
			if err != nil {
				t.Fatal(err)
			}
			update, certificate := signedUpdate(t, dir)
			cmd := exec.Command("sh", "-c", `mount --bind "$0" /boot && exec "$@"`, filepath.Join(dir, "boot"),
				"swupdate", "-B", "grub", "-H", "board:1.0", "-M", "-m", "-k", certificate, "-i", update)
			cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
			return cmd, "/"
		}}
}

// signedUpdate makes an update that changes the two variables, for SWUpdate.
func signedUpdate(t *testing.T, dir string) (update, certificate string) {
	t.Helper()
	payload := []byte("payload\n")
	sum := sha256.Sum256(payload)
	description := fmt.Sprintf(`software = {
  version = "1";
  hardware-compatibility: [ "1.0" ];
  files: ( { filename = "payload"; path = %q; sha256 = %q; } );
  bootenv: ( { name = "bootslot"; value = "B"; }, { name = "counter"; value = "3"; } );
}
`, filepath.Join(dir, "payload"), hex.EncodeToString(sum[:]))
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("sw-description"), []byte(description), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", path("key.pem"), "-out", path("cert.pem"),
		"-subj", "/CN=test", "-addext", "extendedKeyUsage=emailProtection", "-days", "3650")
	mustRun(t, "openssl", "cms", "-sign", "-in", path("sw-description"), "-out", path("sig"), "-signer", path("cert.pem"),
		"-inkey", path("key.pem"), "-outform", "DER", "-nosmimecap", "-binary")
	signature, err := os.ReadFile(path("sig"))
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	for _, member := range []struct {
		name string
		data []byte
	}{{"sw-description", []byte(description)}, {"sw-description.sig", signature}, {"payload", payload}, {"TRAILER!!!", nil}} {
		addMember(&archive, member.name, member.data)
	}
	if err := os.WriteFile(path("update.swu"), archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path("update.swu"), path("cert.pem")
}

// addMember appends a file to a cpio archive of the format "crc" (cpio(5)).
func addMember(b *bytes.Buffer, name string, data []byte) {
	var sum uint32
	for _, c := range data {
		sum += uint32(c)
	}
	fmt.Fprintf(b, "070702%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		1, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, sum, name)
	pad := func() { b.Write(make([]byte, (4-b.Len()%4)%4)) }
	pad()
	b.Write(data)
	pad()
}
