package grubenv

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func newBlock(t *testing.T, pairs ...string) Block {
	t.Helper()
	var b Block
	for i := 0; i < len(pairs); i += 2 {
		if err := b.Set(pairs[i], pairs[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func encode(t *testing.T, b Block) []byte {
	t.Helper()
	data, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestGolden(t *testing.T) {
	got := encode(t, newBlock(t, "seq", "17", "ustate", "1", "text", "a\\b\nc", "empty", "", "end", "17"))
	want, err := os.ReadFile("testdata/block.golden")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("Encode differs from testdata/block.golden (-want +got):\n%s", diff)
	}
	if len(got) != Size {
		t.Errorf("the block has %d bytes, want %d", len(got), Size)
	}
}

func TestVariables(t *testing.T) {
	b := newBlock(t, "one", "1", "two", "2")
	copied := b
	if err := copied.Set("one", "changed"); err != nil {
		t.Fatal(err)
	}
	if v, ok := b.Get("one"); v != "1" || !ok {
		t.Errorf("Get(one) = %q, %t: setting a copy changed the original", v, ok)
	}
	if v, ok := b.Get("three"); v != "" || ok {
		t.Errorf("Get(three) = %q, %t of a block without it", v, ok)
	}
	if diff := cmp.Diff([]string{"one", "two"}, copied.Names()); diff != "" {
		t.Errorf("Names (-want +got):\n%s", diff)
	}
}

func TestSetRefuses(t *testing.T) {
	for _, name := range []string{"", "a b", "a=b", "#a", "a\n", "a\x00", "ü"} {
		if err := new(Block).Set(name, "1"); !errors.Is(err, ErrName) {
			t.Errorf("Set(%q): %v, want ErrName", name, err)
		}
	}
	if err := new(Block).Set("a", "1\x002"); !errors.Is(err, ErrValue) {
		t.Errorf("Set of a NUL: %v, want ErrValue", err)
	}
}

func TestEncodeLimit(t *testing.T) {
	room := Sector - len(signature) - len("x=\n")
	data := encode(t, newBlock(t, "x", strings.Repeat("v", room)))
	if !bytes.Equal(data[Sector:], bytes.Repeat([]byte("#"), Sector)) {
		t.Error("the second sector holds more than '#'")
	}
	for _, value := range []string{strings.Repeat("v", room+1), strings.Repeat(`\`, room/2+1), strings.Repeat("v", 4096)} {
		if _, err := newBlock(t, "x", value).Encode(); !errors.Is(err, ErrTooLarge) {
			t.Errorf("Encode of a value of %d bytes: %v, want ErrTooLarge", len(value), err)
		}
	}
	damaged, err := Parse([]byte(signature + "line\nx=1\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := damaged.Encode(); !errors.Is(err, ErrName) {
		t.Errorf("Encode of a name with a newline: %v, want ErrName", err)
	}
}

// odd are files that GRUB reads without an error although nobody should write
// them; the variables are those that GRUB 2.06 finds, see TestGrubEditenvReads.
var odd = map[string]struct {
	data string
	want []variable
}{
	"one newline":           {signature + "\n", nil},
	"padding only":          {signature + "######", nil},
	"comment":               {signature + "# x=1\ny=2\n###", []variable{{"y", "2"}}},
	"escaped comment":       {signature + "# x\\\ny=1\nz=2\n", []variable{{"z", "2"}}},
	"empty value":           {signature + "x=\n", []variable{{"x", ""}}},
	"equals in the value":   {signature + "x=a=b\n", []variable{{"x", "a=b"}}},
	"escapes":               {signature + "x=a\\\\b\\\nc\\d\n", []variable{{"x", "a\\b\ncd"}}},
	"twice":                 {signature + "x=1\ny=2\nx=3\n", []variable{{"x", "3"}, {"y", "2"}}},
	"no newline at the end": {signature + "x=1\ny=2", []variable{{"x", "1"}}},
	"backslash at the end":  {signature + "x=1\ny=2\\", []variable{{"x", "1"}}},
	"line without equals":   {signature + "junk\nx=1\ny=2\n", []variable{{"junk\nx", "1"}, {"y", "2"}}},
	"junk at the end":       {signature + "x=1\njunk\n####", []variable{{"x", "1"}}},
	"empty line":            {signature + "x=1\n\ny=2\nz=3\n", []variable{{"x", "1"}, {"\ny", "2"}, {"z", "3"}}},
	"empty name":            {signature + "=1\nx=2\n", []variable{{"", "1"}, {"x", "2"}}},
	"backslash in the name": {signature + "a\\=1\nx=2\n", []variable{{"a\\", "1"}, {"x", "2"}}},
	"NUL":                   {signature + "x\x00y=1\x002\nz=3\n", []variable{{"x", "1"}, {"z", "3"}}},
	"NULs for padding":      {signature + "x=1\n\x00\x00\x00", []variable{{"x", "1"}}},
	"more than two sectors": {signature + "x=1\n" + strings.Repeat("#", 2000) + "\ny=2\n", []variable{{"x", "1"}, {"y", "2"}}},
}

func TestParseOdd(t *testing.T) {
	for name, c := range odd {
		b, err := Parse([]byte(c.data))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(c.want, b.vars, cmp.AllowUnexported(variable{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// refused are files that are no environment block.
var refused = []string{
	"", "x=1\n", signature, signature[:len(signature)-1], "\x00" + signature, strings.Repeat("\x00", Size),
}

func TestParseRefuses(t *testing.T) {
	for _, data := range refused {
		if _, err := Parse([]byte(data)); !errors.Is(err, ErrSignature) {
			t.Errorf("Parse(%.20q): %v, want ErrSignature", data, err)
		}
	}
}

// FuzzParse: Parse never fails on a block, and what can be encoded is read back
// as it was, variable by variable.
func FuzzParse(f *testing.F) {
	f.Add([]byte(signature + "x=1\n###"))
	for _, c := range odd {
		f.Add([]byte(c.data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := Parse(data)
		if err != nil {
			if !errors.Is(err, ErrSignature) || len(data) > len(signature) && bytes.HasPrefix(data, []byte(signature)) {
				t.Fatalf("Parse: %v", err)
			}
			return
		}
		encoded, err := b.Encode()
		if err != nil {
			if !errors.Is(err, ErrName) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("Encode: %v", err)
			}
			return
		}
		again, err := Parse(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b.vars, again.vars, cmp.AllowUnexported(variable{})); diff != "" {
			t.Fatalf("round trip (-before +after):\n%s", diff)
		}
		if len(encoded) != Size || encoded[Sector] != '#' {
			t.Fatalf("encoded to %d bytes, byte %d is %q", len(encoded), Sector, encoded[Sector])
		}
	})
}

// editenv runs the real grub-editenv on a file.
func editenv(t *testing.T, file string, args ...string) string {
	t.Helper()
	out, err := exec.Command("grub-editenv", append([]string{file}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("grub-editenv %v: %v: %s", args, err, out)
	}
	return string(out)
}

// TestGrubEditenvRefuses: what GRUB refuses, Parse refuses.
func TestGrubEditenvRefuses(t *testing.T) {
	needEditenv(t)
	file := filepath.Join(t.TempDir(), "env")
	for _, data := range refused {
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("grub-editenv", file, "list").CombinedOutput(); err == nil {
			t.Errorf("grub-editenv reads %.30q: %s", data, out)
		}
	}
}

func needEditenv(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs grub-editenv")
	}
	if _, err := exec.LookPath("grub-editenv"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func listing(b Block) string {
	var s strings.Builder
	for _, v := range b.vars {
		s.WriteString(v.name + "=" + v.value + "\n")
	}
	return s.String()
}

func TestGrubEditenvReads(t *testing.T) {
	needEditenv(t)
	file := filepath.Join(t.TempDir(), "env")
	for name, c := range odd {
		if err := os.WriteFile(file, []byte(c.data), 0o600); err != nil {
			t.Fatal(err)
		}
		want := listing(Block{c.want})
		if name == "twice" { // grub-editenv lists both lines; load_env keeps the last
			want = "x=1\ny=2\nx=3\n"
		}
		if diff := cmp.Diff(want, editenv(t, file, "list")); diff != "" {
			t.Errorf("%s (-want +grub-editenv):\n%s", name, diff)
		}
	}
}

func TestGrubEditenvRoundTrip(t *testing.T) {
	needEditenv(t)
	file := filepath.Join(t.TempDir(), "env")
	ours := encode(t, newBlock(t, "seq", "17", "text", "a\\b\nc", "end", "17"))
	if err := os.WriteFile(file, ours, 0o600); err != nil {
		t.Fatal(err)
	}
	editenv(t, file, "set", "seq=18", "text=x\\\ny", "end=18")
	theirs, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := encode(t, newBlock(t, "seq", "18", "text", "x\\\ny", "end", "18"))
	if diff := cmp.Diff(string(want), string(theirs)); diff != "" {
		t.Errorf("grub-editenv made another block than Encode (-ours +theirs):\n%s", diff)
	}
	b, err := Parse(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := b.Get("text"); v != "x\\\ny" {
		t.Errorf("text = %q after grub-editenv", v)
	}
}
