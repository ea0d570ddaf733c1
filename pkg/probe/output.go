package probe

import (
	"io"
	"strings"
	"unicode/utf8"
)

const (
	// tailSize is how many bytes of a command's output are kept, the last ones.
	tailSize = 4 << 10
	// tailLines and tailText bound what is shown of them.
	tailLines = 3
	tailText  = 300
)

// tail keeps the end of what is read, however much that is.
type tail struct{ kept []byte }

func (t *tail) readAll(from io.Reader) {
	buf := make([]byte, 2*tailSize)
	for {
		n, err := from.Read(buf)
		t.add(buf[:n])
		if err != nil {
			return
		}
	}
}

func (t *tail) add(data []byte) {
	t.kept = append(t.kept, data...)
	if n := len(t.kept) - tailSize; n > 0 {
		t.kept = append(t.kept[:0], t.kept[n:]...)
	}
}

// String is the last lines that have something in them, in one line.
func (t *tail) String() string {
	var lines []string
	for line := range strings.Lines(strings.ToValidUTF8(string(t.kept), "?")) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if n := len(lines) - tailLines; n > 0 {
		lines = lines[n:]
	}
	text := strings.Join(lines, " / ")
	if n := utf8.RuneCountInString(text) - tailText; n > 0 {
		text = "... " + string([]rune(text)[n:])
	}
	return text
}
