package workload

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kapernikov/osctl/pkg/health"
)

// The labels by which a container says what the gate is to ask of it.
const (
	gateLabel    = "osctl.gate"
	gatePrefix   = gateLabel + "."
	timeoutLabel = gatePrefix + "timeout"
	httpLabel    = gatePrefix + "http"
	tcpLabel     = gatePrefix + "tcp"
	execLabel    = gatePrefix + "exec"
)

// Declare reads what a container's labels say to the gate. What is wrong with them is
// in Bad, all of it; what is right stands nevertheless.
func Declare(labels map[string]string) health.Declaration {
	var d health.Declaration
	var bad []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		value := labels[key]
		var err error
		switch {
		case key == gateLabel:
			d.Level, err = parseLevel(value)
		case key == timeoutLabel:
			d.Timeout, err = parseTimeout(value)
		case key == httpLabel:
			d.HTTP = value
			_, err = parseHTTP(value)
			value = "" // there may be a password in it
		case key == tcpLabel:
			d.TCP = value
			_, err = parseTCP(value)
		case key == execLabel:
			d.Exec = value
			_, err = parseExec(value)
			value = ""
		case strings.HasPrefix(key, gatePrefix):
			err = fmt.Errorf("there is no such label; there are %s", strings.Join([]string{gateLabel, timeoutLabel, httpLabel, tcpLabel, execLabel}, ", "))
			value = ""
		}
		if err != nil {
			bad = append(bad, complaint(key, value, err))
		}
	}
	d.Bad = strings.Join(bad, "; ")
	return d
}

// complaint words what is wrong with a label. Labels come from whoever made the
// image, and the text ends on terminals.
func complaint(key, value string, err error) string {
	text := plain(key, 80)
	if value != "" {
		text += "=" + plain(value, 80)
	}
	return text + ": " + err.Error()
}

func parseLevel(value string) (health.Level, error) {
	switch level := health.Level(value); level {
	case health.Required, health.Wanted, health.Ignore:
		return level, nil
	}
	return "", fmt.Errorf("allowed are %s, %s, %s", health.Required, health.Wanted, health.Ignore)
}

func parseTimeout(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("allowed is a duration above zero with its unit, as in 90s or 2m30s")
	}
	return d, nil
}

// httpProbe is what osctl.gate.http says.
type httpProbe struct {
	url    *url.URL
	status int // expected; 0 is any from 200 to 299
}

// String is what is shown of the URL: not its query, where tokens are.
func (p httpProbe) String() string {
	u := url.URL{Scheme: p.url.Scheme, Host: p.url.Host, Path: p.url.Path}
	return u.String()
}

// expected words the status that will do.
func (p httpProbe) expected() string {
	if p.status == 0 {
		return "200 to 299"
	}
	return strconv.Itoa(p.status)
}

func parseHTTP(value string) (httpProbe, error) {
	const allowed = "allowed is a URL, as in http://localhost:8080/health, and after a space the status to expect, as in 204"
	address, status, more := strings.Cut(value, " ")
	var p httpProbe
	if more {
		n, err := strconv.Atoi(status)
		if err != nil || n < 100 || n > 599 || len(status) != 3 {
			return p, fmt.Errorf("%s is no status from 100 to 599; %s", plain(strconv.Quote(status), 20), allowed)
		}
		p.status = n
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return p, fmt.Errorf("%s", allowed)
	}
	if u.User != nil {
		return p, fmt.Errorf("a name or password in it would be shown to everybody; %s", allowed)
	}
	if port := u.Port(); port != "" {
		if err := checkPort(port); err != nil {
			return p, fmt.Errorf("%w; %s", err, allowed)
		}
	}
	p.url = u
	return p, nil
}

// parseTCP returns the address with a host.
func parseTCP(value string) (address string, err error) {
	const allowed = "allowed is [host]:port, as in :5432 or localhost:5432"
	host, port, err := net.SplitHostPort(value)
	if err != nil || strings.ContainsAny(host, " /") {
		return "", fmt.Errorf("%s", allowed)
	}
	if err := checkPort(port); err != nil {
		return "", fmt.Errorf("%w; %s", err, allowed)
	}
	if host == "" {
		host = "localhost"
	}
	return net.JoinHostPort(host, port), nil
}

func checkPort(port string) error {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("%s is no port from 1 to 65535", plain(strconv.Quote(port), 20))
	}
	return nil
}

// parseExec returns the words of a command: those of a JSON array, or the shell's with
// the value as its script, as in a Dockerfile's CMD.
func parseExec(value string) (words []string, err error) {
	const allowed = `allowed is a line for /bin/sh, or a JSON array of a program and its arguments, as in ["/bin/check", "--fast"]`
	if strings.ContainsRune(value, 0) || strings.TrimSpace(value) == "" {
		return nil, fmt.Errorf("%s", allowed)
	}
	if !strings.HasPrefix(strings.TrimSpace(value), "[") {
		return []string{"/bin/sh", "-c", value}, nil
	}
	if err := json.Unmarshal([]byte(value), &words); err != nil || len(words) == 0 || words[0] == "" {
		return nil, fmt.Errorf("%s", allowed)
	}
	if slices.ContainsFunc(words, func(w string) bool { return strings.ContainsRune(w, 0) }) {
		return nil, fmt.Errorf("%s", allowed)
	}
	return words, nil
}

// plain is text in one line of at most most bytes, without what a terminal would
// obey.
func plain(text string, most int) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			r = ' '
		case !strconv.IsPrint(r):
			r = '?'
		}
		if b.Len()+len(string(r)) > most {
			b.WriteString("…")
			break
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}
