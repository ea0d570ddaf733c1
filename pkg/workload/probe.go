package workload

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/kapernikov/osctl/pkg/health"
)

// probeLimit is how long the questions to one container may take, which are asked at
// the same time. It is less than the gate gives a probe, so that what hangs is named
// and cleared away before the gate gives up on it. A health check of nerdctl has its own.
const probeLimit = 8 * time.Second

// Probe asks a running container what it declares that it answers, and returns what
// was seen and whether all of it holds. The questions are asked from inside its
// network and as a command inside it, and leave nothing behind. It returns soon after
// ctx is done.
func (r *Reader) Probe(ctx context.Context, c health.Container) (seen string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, max(probeLimit, c.Declared.HealthCheck))
	defer cancel()
	client, done, err := r.connect(ctx)
	if err != nil {
		return err.Error(), false
	}
	defer done()
	p := prober{client: client, space: c.Namespace, id: c.ID, pid: c.Pid}
	asked := p.questions(c.Declared)
	answers, errs := make([]string, len(asked)), make([]error, len(asked))
	var wg sync.WaitGroup
	for i, q := range asked {
		wg.Go(func() {
			began := time.Now()
			ctx, cancel := context.WithTimeout(ctx, q.limit)
			defer cancel()
			answers[i], errs[i] = q.ask(namespaces.WithNamespace(ctx, p.space))
			if errs[i] != nil && ctx.Err() != nil {
				errs[i] = fmt.Errorf("no answer after %v%s", time.Since(began).Round(time.Second), because(errs[i]))
			}
		})
	}
	wg.Wait()
	var good, bad []string
	for i, q := range asked {
		if errs[i] != nil {
			bad = append(bad, plain(q.name, 80)+": "+plain(errs[i].Error(), 240))
			continue
		}
		good = append(good, plain(q.name, 80)+": "+answers[i])
	}
	if len(bad) > 0 {
		return strings.Join(bad, "; "), false
	}
	return strings.Join(good, "; "), true
}

// question is one thing that a container declares that it answers.
type question struct {
	name  string // for people; labels may have passwords in them, so not all of them
	limit time.Duration
	ask   func(ctx context.Context) (string, error)
}

// questions reads a declaration. What is wrong with it is an answer.
func (p prober) questions(d health.Declaration) []question {
	var list []question
	add := func(name string, err error, ask func(ctx context.Context) (string, error)) {
		if err != nil {
			ask = func(context.Context) (string, error) { return "", err }
		}
		list = append(list, question{name, probeLimit, ask})
	}
	if d.HTTP != "" {
		want, err := parseHTTP(d.HTTP)
		name := "http"
		if err == nil {
			name = want.String()
		}
		add(name, err, func(ctx context.Context) (string, error) { return p.http(ctx, want) })
	}
	if d.TCP != "" {
		address, err := parseTCP(d.TCP)
		add("tcp "+d.TCP, err, func(ctx context.Context) (string, error) { return p.tcp(ctx, address) })
	}
	if d.Exec != "" {
		words, err := parseExec(d.Exec)
		add("exec", err, func(ctx context.Context) (string, error) { return p.exec(ctx, words) })
	}
	if d.HealthCheck > 0 {
		list = append(list, question{"health check", d.HealthCheck, p.healthCheck})
	}
	return list
}

// because keeps what is told beside that the time was up.
func because(err error) string {
	if h := (*hungError)(nil); errors.As(err, &h) && h.Error() != "" {
		return ": " + h.Error()
	}
	return ""
}

// prober asks one container.
type prober struct {
	client    *containerd.Client
	space, id string
	pid       uint32 // of its first process
}

// network opens the container's network.
func (p prober) network(ctx context.Context) (*netNamespace, error) {
	n, err := openNetwork(p.pid)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("it has just ended")
	}
	if err != nil {
		return nil, err
	}
	// If the process still is the container's now, it was when its network was opened.
	got, err := p.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: p.id})
	if err == nil && (got.Process.Pid != p.pid || got.Process.Status != task.Status_RUNNING) {
		err = errors.New("it has just ended")
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// healthCheck runs the health check that nerdctl would run.
func (p prober) healthCheck(ctx context.Context) (string, error) {
	container, err := p.client.LoadContainer(ctx, p.id)
	if err != nil {
		return "", err
	}
	labels, err := container.Labels(ctx)
	if err != nil {
		return "", err
	}
	words := parseHealthCheck(labels).words()
	if len(words) == 0 {
		return "", errors.New("it has none any more")
	}
	return p.exec(ctx, words)
}

func (p prober) tcp(ctx context.Context, address string) (string, error) {
	n, err := p.network(ctx)
	if err != nil {
		return "", err
	}
	defer n.Close()
	conn, err := n.dial(ctx, address)
	if err != nil {
		return "", err
	}
	conn.Close()
	return "connects", nil
}

// mostBody is how much of a body is shown when the status will not do.
const mostBody = 120

func (p prober) http(ctx context.Context, want httpProbe) (string, error) {
	n, err := p.network(ctx)
	if err != nil {
		return "", err
	}
	defer n.Close()
	client := http.Client{
		Transport: &http.Transport{
			DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
				// Not the context of the transport, which goes on dialling for the next
				// request when this one is given up.
				return n.dial(ctx, address)
			},
			DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
			// The certificate of a service on its own localhost names something else, and
			// who answers is not the question.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // as above
		},
		// A service that sends whoever asks elsewhere has answered.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, want.url.String(), nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("User-Agent", "osctl")
	response, err := client.Do(request)
	if err != nil {
		return "", errors.Unwrap(err) // of *url.Error, which repeats the URL
	}
	defer response.Body.Close()
	status := plain(response.Status, 60)
	if response.StatusCode == want.status || want.status == 0 && response.StatusCode/100 == 2 {
		return status, nil
	}
	status += " instead of " + want.expected()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 4*mostBody))
	if text := plain(string(body), mostBody); text != "" {
		status += ", " + text
	}
	return "", errors.New(status)
}
