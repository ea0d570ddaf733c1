package publish

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"time"

	"github.com/digitorus/timestamp"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// ErrTimestamp says that a timestamp service could not be reached, or that it did not
// answer with a timestamp of the signature.
var ErrTimestamp = errors.New("timestamp service")

const (
	// maxStamp bounds an answer in bytes; one with a chain of certificates has 6 KiB.
	maxStamp = 64 << 10
	// stampWithin is how long a timestamp service may take. It signs a few bytes.
	stampWithin = 30 * time.Second
)

// timestamp asks the service of the options when a signature was made (RFC 3161), and
// checks the answer as far as it can be without knowing the service. It is nil if the
// options name none.
func (o Options) timestamp(ctx context.Context, sig []byte) ([]byte, error) {
	if o.Timestamps == "" {
		return nil, nil
	}
	fail := func(err error) ([]byte, error) {
		if errors.Is(err, errPlainHTTP) {
			err = fmt.Errorf("%w; give --plain-http if everybody on the way may read and alter what is sent", err)
		}
		return nil, fmt.Errorf("%w: %w", ErrTimestamp, err)
	}
	nonce, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
	if err != nil {
		return fail(err)
	}
	question, err := timestamp.CreateRequest(bytes.NewReader(sig), &timestamp.RequestOptions{Hash: crypto.SHA256, Certificates: true, Nonce: nonce})
	if err != nil {
		return fail(err)
	}
	raw, err := o.askForTime(ctx, question)
	if err != nil {
		return fail(err)
	}
	if err := o.Certificate.checkStamp(raw, sig, nonce); err != nil {
		return fail(fmt.Errorf("%s: %w", o.Timestamps, err))
	}
	return raw, nil
}

func (o Options) askForTime(ctx context.Context, question []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, stampWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.Timestamps, bytes.NewReader(question))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/timestamp-query")
	req.Header.Set("User-Agent", "osctl")
	resp, err := (&http.Client{Transport: guard{remote.DefaultTransport, o.PlainHTTP}}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		return nil, fmt.Errorf("%s answers %s", o.Timestamps, resp.Status)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxStamp+1))
	if err == nil && len(raw) > maxStamp {
		err = fmt.Errorf("%s answers with more than %d bytes", o.Timestamps, maxStamp)
	}
	return raw, err
}

// checkStamp holds an answer against what was asked and against the certificate. Whether
// the service is one to trust, the machine's trusted root says.
func (c *Certificate) checkStamp(raw, sig []byte, nonce *big.Int) error {
	stamp, err := timestamp.ParseResponse(raw) // verifies its signature by its own certificate
	if err != nil {
		return fmt.Errorf("an answer that is no timestamp: %w", err)
	}
	sum := sha256.Sum256(sig)
	switch {
	case len(stamp.Certificates) == 0:
		return errors.New("the timestamp has no certificate of who made it")
	case stamp.HashAlgorithm != crypto.SHA256 || !bytes.Equal(stamp.HashedMessage, sum[:]):
		return errors.New("the timestamp is of something else than the signature")
	case stamp.Nonce == nil || stamp.Nonce.Cmp(nonce) != 0:
		return errors.New("the timestamp answers another question")
	case stamp.Time.Before(c.leaf.NotBefore) || stamp.Time.After(c.leaf.NotAfter):
		return fmt.Errorf("the timestamp says %s, when the certificate is not valid", stamp.Time.UTC().Format(time.RFC3339))
	}
	return nil
}
