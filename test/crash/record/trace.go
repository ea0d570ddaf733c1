package record

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// calls are the system calls that strace is asked for: those that change something
// on a file system, make it durable, or move the position of the next change.
const calls = "openat,open,creat,close,lseek,chdir,fchdir,dup,dup2,dup3," +
	"write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,copy_file_range,sendfile,splice," +
	"fsync,fdatasync,syncfs,sync,sync_file_range,msync," +
	"rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,mkdir,mkdirat,symlink,symlinkat,mknod,mknodat," +
	"chmod,fchmod,fchmodat,?fchmodat2,chown,fchown,lchown,fchownat,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr"

// call is one system call that succeeded.
type call struct {
	name       string
	args       []string
	result     string
	begin, end int // lines of the trace
}

// parse reads what "strace -f -xx -y" wrote and calls use for each call that
// succeeded, in the order in which they ended.
func parse(r io.Reader, use func(call) error) error {
	in := bufio.NewReaderSize(r, 1<<20)
	type started struct {
		text string
		line int
	}
	open := map[string]started{}
	for line := 1; ; line++ {
		text, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) && text == "" {
			return nil
		}
		if err != nil {
			return err
		}
		pid, rest, _ := strings.Cut(strings.TrimSuffix(text, "\n"), " ")
		rest = strings.TrimLeft(rest, " ")
		if head, ok := strings.CutSuffix(rest, " <unfinished ...>"); ok {
			open[pid] = started{head, line}
			continue
		}
		begin := line
		if strings.HasPrefix(rest, "<... ") {
			_, tail, _ := strings.Cut(rest, " resumed>")
			s := open[pid]
			rest, begin = s.text+tail, s.line
			delete(open, pid)
		}
		c, ok := split(rest)
		if !ok {
			continue
		}
		c.begin, c.end = begin, line
		if err := use(c); err != nil {
			return fmt.Errorf("line %d: %s: %w", line, c.name, err)
		}
	}
}

// split takes "name(a, b) = result" apart; not ok for a call that failed and for
// what is no call.
func split(line string) (call, bool) {
	name, rest, ok := strings.Cut(line, "(")
	at := strings.LastIndex(rest, " = ")
	if !ok || at < 0 || strings.ContainsAny(name, " +-") {
		return call{}, false
	}
	args := strings.TrimRight(rest[:at], " ")
	args = strings.TrimSuffix(args, ")")
	result := rest[at+len(" = "):]
	if strings.HasPrefix(result, "-1 ") || strings.HasPrefix(result, "?") {
		return call{}, false
	}
	return call{name: name, args: strings.Split(args, ", "), result: result}, true
}

// number is the leading decimal number of a result.
func (c call) number() (int64, error) {
	end := 0
	for end < len(c.result) && c.result[end] >= '0' && c.result[end] <= '9' {
		end++
	}
	return strconv.ParseInt(c.result[:end], 10, 64)
}

// bytes decodes a quoted string of hexadecimal escapes.
func decode(arg string) ([]byte, error) {
	if strings.HasSuffix(arg, "...") {
		return nil, errors.New("strace cut the data off")
	}
	if len(arg) < 2 || arg[0] != '"' || arg[len(arg)-1] != '"' {
		return nil, fmt.Errorf("%.40s is no string", arg)
	}
	return unescape(arg[1 : len(arg)-1])
}

func unescape(s string) ([]byte, error) {
	digits := make([]byte, 0, len(s)/2)
	for len(s) >= 4 && s[:2] == `\x` {
		digits = append(digits, s[2], s[3])
		s = s[4:]
	}
	if s != "" {
		return nil, fmt.Errorf("%.40s is not in hexadecimal", s)
	}
	out := make([]byte, len(digits)/2)
	_, err := hex.Decode(out, digits)
	return out, err
}

// fdPath is the path in an argument such as 3<\x2f\x78>, empty if there is none.
func fdPath(arg string) string {
	_, path, ok := strings.Cut(arg, "<")
	if !ok {
		return ""
	}
	path, _, _ = strings.Cut(path, ">")
	b, err := unescape(path)
	if err != nil {
		return ""
	}
	return string(b)
}
