package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// errSilent says that a machine stopped answering without closing a connection.
var errSilent = errors.New("the connection is dead")

const (
	// answerLimit bounds one try to log in or to open a session: a machine that
	// is going down may take a connection and never answer.
	answerLimit = 30 * time.Second
	// aliveEvery is how often a machine is asked for a sign of life while a
	// command runs, and aliveLimit how long it has for that. An emulated machine
	// that writes to its disk can be slow.
	aliveEvery = 10 * time.Second
	aliveLimit = 60 * time.Second
)

// Result is what a command on the machine did.
type Result struct {
	Stdout, Stderr string
	Exit           int
}

// login keeps the ssh connection from one command to the next.
type login struct {
	mu     sync.Mutex
	client *ssh.Client
}

// Run runs a shell command as root and waits for its end. It logs in first, and
// waits for the machine to let it do so. A command that ends with an exit status
// is no error; one that was cut off, by a restart for instance, is.
func (m *Machine) Run(ctx context.Context, command string) (Result, error) {
	var stdout, stderr bytes.Buffer
	exit, err := m.Stream(ctx, command, &stdout, &stderr)
	return Result{Stdout: stdout.String(), Stderr: stderr.String(), Exit: exit}, err
}

// Stream is Run with the output passed on as it comes. When it has returned, it
// writes no more.
func (m *Machine) Stream(ctx context.Context, command string, stdout, stderr io.Writer) (exit int, err error) {
	client, session, err := m.session(ctx)
	if err != nil {
		return -1, m.explain(fmt.Sprintf("logging in to run %q", command), err)
	}
	defer session.Close()
	out, errOut := &tap{to: stdout}, &tap{to: stderr}
	defer out.shut()
	defer errOut.shut()
	session.Stdout, session.Stderr = out, errOut
	if err := session.Start(command); err != nil {
		return -1, m.explain(fmt.Sprintf("starting %q", command), err)
	}
	done, silent, stop := make(chan error, 1), make(chan struct{}), make(chan struct{})
	defer close(stop)
	go func() { done <- session.Wait() }()
	go func() {
		if watch(client, stop) {
			close(silent)
		}
	}()
	select {
	case err = <-done:
	case <-silent:
		err = errSilent
	case <-m.ended:
		err = ErrEnded
	case <-ctx.Done():
		return -1, m.explain(fmt.Sprintf("running %q", command), context.Cause(ctx))
	}
	var status *ssh.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &status) && status.Signal() == "":
		return status.ExitStatus(), nil
	}
	m.login.close()
	return -1, m.explain(fmt.Sprintf("running %q", command), err)
}

// watch asks the machine for a sign of life now and then. It returns true when
// there is none: a machine that restarted abruptly never closes its connections.
func watch(client *ssh.Client, stop <-chan struct{}) (silent bool) {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return false
		case <-tick.C:
		}
		if !answers(client, stop) {
			return true
		}
	}
}

// answers makes one request that every ssh server answers, if only to refuse it.
func answers(client *ssh.Client, stop <-chan struct{}) bool {
	answer := make(chan error, 1)
	go func() {
		_, _, err := client.SendRequest("keepalive@openssh.com", true, nil)
		answer <- err
	}()
	limit := time.NewTimer(aliveLimit)
	defer limit.Stop()
	select {
	case err := <-answer:
		return err == nil
	case <-stop:
		return true
	case <-limit.C:
		return false
	}
}

// tap passes writes on until it is shut.
type tap struct {
	mu sync.Mutex
	to io.Writer
}

func (t *tap) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.to == nil {
		return len(p), nil
	}
	return t.to.Write(p)
}

func (t *tap) shut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.to = nil
}

// Connect logs in, or checks that the login of before still stands. It tries
// again until the machine lets it in or the context ends: the network has no
// event that tells when a server in the machine begins to listen.
func (m *Machine) Connect(ctx context.Context) error {
	_, session, err := m.session(ctx)
	if err != nil {
		return m.explain("logging in", err)
	}
	return session.Close()
}

// session opens a session on the connection of before, or on a new one.
func (m *Machine) session(ctx context.Context) (*ssh.Client, *ssh.Session, error) {
	m.login.mu.Lock()
	defer m.login.mu.Unlock()
	if client := m.login.client; client != nil {
		if session, err := open(ctx, client); err == nil {
			return client, session, nil
		}
		client.Close()
		m.login.client = nil
	}
	for try := 0; ; try++ {
		client, session, err := m.dial(ctx)
		if err == nil {
			m.login.client = client
			return client, session, nil
		}
		pause := time.NewTimer(retryPause(try))
		select {
		case <-pause.C:
		case <-m.ended:
			pause.Stop()
			return nil, nil, ErrEnded
		case <-ctx.Done():
			pause.Stop()
			return nil, nil, errors.Join(context.Cause(ctx), err)
		}
	}
}

// open opens a session; a connection that does not answer is closed.
func open(ctx context.Context, client *ssh.Client) (*ssh.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	return client.NewSession()
}

// dial makes one try to connect, log in and open a session.
func (m *Machine) dial(ctx context.Context) (*ssh.Client, *ssh.Session, error) {
	if m.config.Key == nil {
		return nil, nil, errors.New("the machine was started without a key for ssh")
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", m.Addr(22))
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	transport, channels, requests, err := ssh.NewClientConn(conn, m.Addr(22), &ssh.ClientConfig{
		User: "root",
		Auth: []ssh.AuthMethod{ssh.PublicKeys(m.config.Key)},
		// The machine makes its host key at its first boot, and the connection
		// goes no further than to our own child process.
		HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	client := ssh.NewClient(transport, channels, requests)
	session, err := client.NewSession()
	if err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	return client, session, nil
}

// close ends the connection, and with it every command that still runs.
func (l *login) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.client != nil {
		l.client.Close()
		l.client = nil
	}
}
