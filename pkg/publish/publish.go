// Package publish brings OS images to where machines find them: it pushes an
// OCI layout to a registry and signs a digest with a cosign key pair.
//
// It runs where images are made, never on a machine, and decides nothing about
// trust: it signs what it is told to sign, provided that it is an OS artifact.
//
// It promises that a tag is resolved once and that only the digest is signed;
// that a tag appears in the registry after everything that it leads to,
// signatures included; that signatures which are there already stay; that blobs
// stream from disk, hashed on the way, in memory that does not grow with the
// image; and that credentials and images travel in the clear only to a loopback
// address or when Options.PlainHTTP says so.
//
// The form of a signature is cosign's classic one (docs/decisions/0030): a
// manifest under the tag sha256-<hex>.sig whose layers are the signed payloads.
package publish

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/kapernikov/osctl/pkg/progress"
)

var (
	// ErrRegistry says that a registry could not be reached or did not do what
	// it was asked for.
	ErrRegistry = errors.New("registry or network")
	// ErrDenied says that the registry wants other credentials (401, 403). It
	// comes wrapped together with ErrRegistry.
	ErrDenied = errors.New("access denied")
	// ErrNotFound says that the registry has no such name (404). It comes
	// wrapped together with ErrRegistry.
	ErrNotFound = errors.New("not found")
	// ErrReference says that a string is no reference to an image in a registry.
	ErrReference = errors.New("malformed reference")
	// ErrLayout says that a directory is no OCI layout with one OS image, or a
	// damaged one.
	ErrLayout = errors.New("unusable OCI layout")
	// ErrKey says that a private key cannot be used.
	ErrKey = errors.New("unusable signing key")
	// ErrPassword says that a password does not open a private key. It comes
	// wrapped together with ErrKey.
	ErrPassword = errors.New("wrong password")

	// errPlainHTTP says that a request would have gone out without TLS.
	errPlainHTTP = errors.New("refusing HTTP without TLS")
)

// Options are those of Push and Sign. The zero value is usable.
type Options struct {
	// PlainHTTP permits HTTP without TLS to any host. A loopback address
	// (localhost, 127.0.0.0/8, ::1) needs no permission.
	PlainHTTP bool
	// Jobs is the number of blobs that are uploaded at the same time; 0 means 4.
	Jobs int
	// Keychain finds credentials. Nil means those of the docker and nerdctl
	// configuration (DOCKER_CONFIG, ~/.docker/config.json and its helpers).
	Keychain authn.Keychain
	// Progress receives the bytes of a push.
	Progress progress.Sink
	// Annotations are claims that a signature makes beside the digest; machines ask for
	// some by the rules of their policy. A bundle carries none.
	Annotations map[string]string
	// Bundle makes a signature a sigstore bundle that refers to the image, instead of
	// the classic form under a tag of cosign's.
	Bundle bool
	// Certificate lies beside a signature; it is one of the key that signs.
	Certificate *Certificate
	// Timestamps is the URL of a service that says when something was signed (RFC
	// 3161). It is asked if there is a Certificate.
	Timestamps string

	backoff *remote.Backoff // tests shorten the pauses between attempts
}

// defaultJobs is what docker push uses as well.
const defaultJobs = 4

// remote translates to the options of the registry library, which tries again
// after a pause when an attempt may succeed later.
func (o Options) remote(ctx context.Context) []remote.Option {
	keychain := o.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	options := []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(keychain), remote.WithUserAgent("osctl"),
		remote.WithJobs(o.jobs()), remote.WithTransport(guard{remote.DefaultTransport, o.PlainHTTP}),
	}
	if o.backoff != nil {
		options = append(options, remote.WithRetryBackoff(*o.backoff))
	}
	return options
}

func (o Options) jobs() int {
	if o.Jobs > 0 {
		return o.Jobs
	}
	return defaultJobs
}

// parse reads a reference that leaves nothing to defaults: an OS image that
// went to another registry because a host was left out would be a bad surprise.
func (o Options) parse(ref string) (name.Reference, error) {
	options := []name.Option{name.StrictValidation}
	if o.PlainHTTP {
		options = append(options, name.Insecure)
	}
	parsed, err := name.ParseReference(ref, options...)
	if err != nil {
		return nil, fmt.Errorf("%w %q: expected registry, repository and tag or digest, for example registry.example.com/os:1.2 (%w)", ErrReference, ref, err)
	}
	return parsed, nil
}

// registryError adds what was being done to an error of the registry library,
// and its kind. Errors of our own that came through it keep theirs.
func registryError(doing string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrLayout) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if errors.Is(err, errPlainHTTP) {
		return fmt.Errorf("%s: %w: %w; give --plain-http if everybody on the way may read and alter what is sent", doing, ErrRegistry, err)
	}
	if answer := (*transport.Error)(nil); errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("%s: %w: %w: %w", doing, ErrRegistry, ErrDenied, err)
		case http.StatusNotFound:
			return fmt.Errorf("%s: %w: %w: %w", doing, ErrRegistry, ErrNotFound, err)
		}
	}
	return fmt.Errorf("%s: %w: %w", doing, ErrRegistry, err)
}

// guard keeps requests that nobody permitted from going out in the clear: the
// registry library falls back to HTTP for private addresses and names under
// .local, and a registry may redirect to it.
type guard struct {
	next      http.RoundTripper
	plainHTTP bool
}

func (g guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !g.plainHTTP && !isLoopback(r.URL.Hostname()) {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, fmt.Errorf("%w to %s", errPlainHTTP, r.URL.Host)
	}
	return g.next.RoundTrip(r)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
