package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// Units is what the gate wants to know of systemd's units.
type Units struct {
	Failed []string // names of the units that have failed, sorted
	// State has one entry for each unit that was asked for: its active state
	// ("active", "inactive", "activating", "failed", …), or its load state if
	// that is not "loaded" ("not-found", "masked", "bad-setting", …).
	State map[string]string
	// Entered has when each of those that are loaded last became active, in microseconds
	// of the monotonic clock; 0 is never.
	Entered map[string]uint64
	// Pending describes the jobs that the boot still has to do: those that
	// default.target waits for, itself included, without the ones that wait for
	// the caller's own unit. A gate that runs as part of the boot would wait for
	// itself otherwise. Jobs that somebody queued beside the boot, such as a
	// timer's backup of an hour, do not count.
	Pending []string
}

// defaultSocket is where systemd's system manager speaks D-Bus without a bus
// daemon, to root only. A gate that used the bus would be blind whenever that
// daemon is what the new system broke.
const defaultSocket = "/run/systemd/private"

// The names of systemd's D-Bus interface, org.freedesktop.systemd1(5).
const (
	busName      = "org.freedesktop.systemd1"
	managerPath  = dbus.ObjectPath("/org/freedesktop/systemd1")
	managerIface = busName + ".Manager"
	unitIface    = busName + ".Unit"
	propsIface   = "org.freedesktop.DBus.Properties"
)

// Systemd asks the system manager. The zero value asks the one that runs this
// machine, and needs no closing. While somebody listens to Changes, Units goes through
// that connection.
type Systemd struct {
	Socket string // its private D-Bus socket; "" is the system manager's

	mu        sync.Mutex
	listening *dbus.Conn // that of Changes; nil while nobody listens
}

// Units returns the state of the units, and of the named ones in particular.
// It needs root.
func (s *Systemd) Units(ctx context.Context, names []string) (Units, error) {
	s.mu.Lock()
	shared := s.listening
	s.mu.Unlock()
	if shared != nil {
		if u, err := units(ctx, shared, names); err == nil || ctx.Err() != nil {
			return u, err
		} // it may just have ended, which says nothing of systemd
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return Units{}, err
	}
	defer conn.Close()
	return units(ctx, conn, names)
}

func units(ctx context.Context, conn *dbus.Conn, names []string) (Units, error) {
	m := managerCalls{ctx, conn}

	u := Units{State: map[string]string{}, Entered: map[string]uint64{}}
	failed, err := m.list("ListUnitsFiltered", []string{"failed"})
	if err != nil {
		return Units{}, err
	}
	for _, unit := range failed {
		u.Failed = append(u.Failed, unit.Name)
	}
	slices.Sort(u.Failed)
	for _, name := range names {
		if u.State[name], u.Entered[name], err = m.state(name); err != nil {
			return Units{}, err
		}
	}
	if u.Pending, err = m.pending(); err != nil {
		return Units{}, err
	}
	return u, nil
}

// Changes gets a value when it has begun to listen and after any unit changed
// its state or its job. It is closed when ctx is done or the connection is.
func (s *Systemd) Changes(ctx context.Context) <-chan struct{} {
	bell := make(chan struct{}, 1)
	go func() {
		defer close(bell)
		conn, err := s.connect(ctx)
		if err != nil {
			return
		}
		defer conn.Close()
		signals := make(chan *dbus.Signal, 64)
		conn.Signal(signals)
		if err := (managerCalls{ctx, conn}).call("Subscribe"); err != nil {
			return
		}
		s.share(conn)
		defer s.share(nil) // before it is closed
		bell <- struct{}{}
		for {
			select {
			case <-ctx.Done():
				return
			case signal, open := <-signals:
				if !open {
					return
				}
				if tellsOfChange(signal) {
					select {
					case bell <- struct{}{}:
					default:
					}
				}
			}
		}
	}()
	return bell
}

func (s *Systemd) share(conn *dbus.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listening = conn
}

// tellsOfChange picks the signals after which Units may differ. UnitNew and
// UnitRemoved do not: asking for a unit that is not loaded sends both, so the
// gate would wake itself up for ever.
func tellsOfChange(signal *dbus.Signal) bool {
	switch signal.Name {
	case managerIface + ".JobNew", managerIface + ".JobRemoved":
		return true
	case propsIface + ".PropertiesChanged":
		return len(signal.Body) > 0 && signal.Body[0] == unitIface
	}
	return false
}

// connect opens a connection that is closed when ctx is done.
func (s *Systemd) connect(ctx context.Context) (*dbus.Conn, error) {
	socket := s.Socket
	if socket == "" {
		socket = defaultSocket
	}
	conn, err := dbus.Dial("unix:path="+dbus.EscapeBusAddressValue(socket), dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("connecting to systemd: %w", err)
	}
	err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))})
	if err == nil {
		err = begin(ctx, conn)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connecting to systemd at %s: %w", socket, err)
	}
	return conn, nil
}

// begin returns once systemd answers. Its side of a private connection (seen in
// 252) leaves a message that it reads together with the last line of the
// handshake lying until another one comes; a caller that waits for the answer
// waits for ever. So another one is sent while there is no answer.
func begin(ctx context.Context, conn *dbus.Conn) error {
	// Room for all answers: doubling from 10 ms, lookLimit is over long before.
	answers := make(chan *dbus.Call, 32)
	for pause := 10 * time.Millisecond; ; pause *= 2 {
		conn.Object(busName, managerPath).GoWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", 0, answers)
		select {
		case call := <-answers:
			return call.Err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// unitRow is one unit as the List methods return it.
type unitRow struct {
	Name, Description, Load, Active, Sub, Following string
	Path                                            dbus.ObjectPath
	JobID                                           uint32
	JobType                                         string
	JobPath                                         dbus.ObjectPath
}

// jobRow is one job as the GetJob methods return it.
type jobRow struct {
	ID                uint32
	Unit, Type, State string
	Path, UnitPath    dbus.ObjectPath
}

// managerCalls makes method calls for the length of one connection.
type managerCalls struct {
	ctx  context.Context
	conn *dbus.Conn
}

// call calls a method of the manager and stores its results.
func (m managerCalls) call(method string, args ...any) error {
	return m.into(nil, method, args...)
}

func (m managerCalls) into(result any, method string, args ...any) error {
	call := m.conn.Object(busName, managerPath).CallWithContext(m.ctx, managerIface+"."+method, 0, args...)
	err := call.Err
	if err == nil && result != nil {
		err = call.Store(result)
	}
	if err != nil {
		return fmt.Errorf("asking systemd (%s): %w", method, err)
	}
	return nil
}

func (m managerCalls) list(method string, arg []string) ([]unitRow, error) {
	var rows []unitRow
	err := m.into(&rows, method, arg)
	return rows, err
}

// state asks for one unit at a time, since the answer has the unit's own name
// where the question may have had an alias.
func (m managerCalls) state(name string) (state string, entered uint64, err error) {
	rows, err := m.list("ListUnitsByNames", []string{name})
	if err != nil {
		return "", 0, err
	}
	switch {
	case len(rows) != 1:
		return "not a unit name", 0, nil
	case rows[0].Load != "loaded":
		return rows[0].Load, 0, nil
	}
	err = m.property(rows[0].Path, "ActiveEnterTimestampMonotonic", &entered)
	return rows[0].Active, entered, err
}

// property reads one property of a unit.
func (m managerCalls) property(unit dbus.ObjectPath, name string, result any) error {
	var value dbus.Variant
	err := m.conn.Object(busName, unit).CallWithContext(m.ctx, propsIface+".Get", 0, unitIface, name).Store(&value)
	if err == nil {
		err = value.Store(result)
	}
	if err != nil {
		return fmt.Errorf("asking systemd for %s of %s: %w", name, unit, err)
	}
	return nil
}

// pending walks from the job of default.target to all jobs that it waits for,
// and leaves out those that wait for the job of the caller's own unit.
func (m managerCalls) pending() ([]string, error) {
	var target dbus.ObjectPath
	err := m.into(&target, "GetUnit", "default.target")
	if isError(err, "NoSuchUnit") {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	job, err := m.jobOf(target, "default.target")
	if err != nil || job.ID == 0 {
		return nil, err
	}
	before := map[uint32]jobRow{job.ID: job}
	if err := m.walk("GetJobBefore", before); err != nil {
		return nil, err
	}

	after := map[uint32]jobRow{}
	var own dbus.ObjectPath
	err = m.into(&own, "GetUnitByPID", uint32(os.Getpid()))
	switch {
	case isError(err, "NoUnitForPID"):
	case err != nil:
		return nil, err
	default:
		job, err := m.jobOf(own, "")
		if err != nil {
			return nil, err
		}
		if job.ID != 0 {
			after[job.ID] = job
		}
		if err := m.walk("GetJobAfter", after); err != nil {
			return nil, err
		}
	}
	var left []string
	for id, job := range before {
		if _, waits := after[id]; !waits {
			left = append(left, fmt.Sprintf("%s %s (%s)", job.Type, job.Unit, job.State))
		}
	}
	slices.Sort(left)
	return left, nil
}

// jobOf returns the pending job of a unit; its ID is 0 if it has none. What
// the job does is not asked for: it is a start job in all that matters.
func (m managerCalls) jobOf(unit dbus.ObjectPath, name string) (jobRow, error) {
	var job struct {
		ID   uint32
		Path dbus.ObjectPath
	}
	if err := m.property(unit, "Job", &job); err != nil {
		return jobRow{}, err
	}
	return jobRow{ID: job.ID, Unit: name, Type: "start", State: "waiting"}, nil
}

// walk adds to jobs all that the method leads to from them, in any number of
// steps. Jobs that end meanwhile are passed over.
func (m managerCalls) walk(method string, jobs map[uint32]jobRow) error {
	var todo []uint32
	for id := range jobs {
		todo = append(todo, id)
	}
	for len(todo) > 0 {
		id := todo[0]
		todo = todo[1:]
		var next []jobRow
		err := m.into(&next, method, id)
		if isError(err, "NoSuchJob") {
			continue
		}
		if err != nil {
			return err
		}
		for _, job := range next {
			if _, known := jobs[job.ID]; !known {
				jobs[job.ID] = job
				todo = append(todo, job.ID)
			}
		}
	}
	return nil
}

// isError tells systemd's errors apart by the last part of their name.
func isError(err error, name string) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == busName+"."+name
}
