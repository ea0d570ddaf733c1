// Package proof keeps, for each slot, what says offline which bytes it should
// hold: manifest and config of the image as they were fetched, the signatures as
// they were found, and the reference they came from. With these and the medium it
// proves, at any time and without a network, that a slot holds the signed bytes.
//
// A record is one JSON file a slot on the data partition, replaced atomically. It
// is trusted with nothing: the digests are computed again, the signature is
// verified again by the policy of today, and the medium is read past the cache.
// A record that is lost costs the proof, never a boot or an upgrade.
//
// The package refuses to know what boots, and repairs nothing.
package proof

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kapernikov/osctl/pkg/atomicfile"
	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/osimage"
)

// Dir is the folder of the records within the state directory.
const Dir = "slots"

// schema is the version of the file's format.
const schema = 1

// maxFile bounds a record in bytes: manifest and config at their limits, in
// base64, and a hundred signatures.
const maxFile = (osimage.MaxManifest+osimage.MaxConfig+osimage.MaxEvidence)/3*4 + 16<<20

var (
	// ErrNone says that nothing is kept of what the slot should hold.
	ErrNone = errors.New("nothing is kept of what the slot should hold")
	// ErrCorrupt says that there is a record and that it cannot be understood.
	ErrCorrupt = errors.New("the record of the slot cannot be read")
)

// Record is what is kept for one slot. The zero value is refused.
type Record struct {
	image      osimage.Image
	signatures []osimage.Signature
	reference  string
}

// New makes the record of an image, with its signatures as they were found and
// the reference that it was asked for by.
func New(img osimage.Image, signatures []osimage.Signature, reference string) Record {
	return Record{img, signatures, reference}
}

// Image is the image that the slot should hold: its digests fit, and nobody has
// verified it.
func (r Record) Image() osimage.Image { return r.image }

// Reference is where the image came from, for people and for a repair.
func (r Record) Reference() string { return r.reference }

// file is the format of a record.
type file struct {
	Schema     int             `json:"schema"`
	Digest     digest.Digest   `json:"digest"`
	Reference  string          `json:"reference"`
	Manifest   []byte          `json:"manifest"` // as fetched
	Config     []byte          `json:"config"`
	Signatures []fileSignature `json:"signatures"`
}

type fileSignature struct {
	Payload   []byte       `json:"payload"`
	Signature string       `json:"signature"` // base64, as found
	Form      osimage.Form `json:"form,omitempty"`
	// Annotations carry certificates and what proves them.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Encode is the content of the record's file.
func (r Record) Encode() ([]byte, error) {
	if !r.image.Valid() {
		return nil, errors.New("encoding the record of a slot: there is no image")
	}
	f := file{
		Schema: schema, Digest: r.image.Digest(), Reference: r.reference,
		Manifest: r.image.RawManifest(), Config: r.image.RawConfig(), Signatures: []fileSignature{},
	}
	for _, s := range r.signatures {
		f.Signatures = append(f.Signatures, fileSignature{s.Payload, s.Base64, s.Form, s.Annotations})
	}
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the record of a slot: %w", err)
	}
	return append(data, '\n'), nil
}

// Parse decodes a record and checks its digests. Errors wrap ErrCorrupt.
func Parse(data []byte) (Record, error) {
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if f.Schema != schema {
		return Record{}, fmt.Errorf("%w: schema %d, known is %d", ErrCorrupt, f.Schema, schema)
	}
	img, err := osimage.Parse(ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: osimage.ArtifactType, Digest: f.Digest, Size: int64(len(f.Manifest)),
	}, f.Manifest, f.Config)
	if err != nil {
		// Not wrapped: it is this file that is broken, not what a registry sent.
		return Record{}, fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	r := Record{image: img, reference: f.Reference}
	for _, s := range f.Signatures {
		r.signatures = append(r.signatures, osimage.Signature{Form: s.Form, Payload: s.Payload, Base64: s.Signature, Annotations: s.Annotations})
	}
	return r, nil
}

// Store is the records of both slots on disk.
type Store struct{ dir string }

// Open names the state directory; it need not exist yet.
func Open(stateDir string) *Store { return &Store{filepath.Join(stateDir, Dir)} }

// FileName is the name of a slot's record in the state directory.
func FileName(s device.Slot) string { return filepath.Join(Dir, string(s)+".json") }

func (s *Store) path(name device.Slot) string { return filepath.Join(s.dir, string(name)+".json") }

// Load reads the record of a slot. It fails with ErrNone or ErrCorrupt.
func (s *Store) Load(name device.Slot) (Record, error) {
	if !name.Holds() {
		return Record{}, fmt.Errorf("reading the record of slot %q: the slots are A and B", name)
	}
	f, err := os.Open(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, fmt.Errorf("slot %s: %w", name, ErrNone)
	}
	if err != nil {
		return Record{}, fmt.Errorf("reading the record of slot %s: %w", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return Record{}, fmt.Errorf("reading the record of slot %s: %w", name, err)
	}
	r, err := Parse(data)
	if err != nil {
		return Record{}, fmt.Errorf("reading %s: %w", s.path(name), err)
	}
	return r, nil
}

// Keep writes the record of a slot durably. The caller holds the machine's lock,
// and arms the slot only afterwards.
func (s *Store) Keep(name device.Slot, r Record) error {
	err := s.keep(name, r)
	if err != nil {
		return fmt.Errorf("keeping what slot %s should hold: %w", name, err)
	}
	return nil
}

func (s *Store) keep(name device.Slot, r Record) error {
	if !name.Holds() {
		return errors.New("the slots are A and B")
	}
	data, err := r.Encode()
	if err != nil {
		return err
	}
	if err := s.makeDir(); err != nil {
		return err
	}
	if err := atomicfile.Sweep(s.path(name)); err != nil {
		return err
	}
	return atomicfile.Write(s.path(name), data, 0o644)
}

// makeDir makes the folder, and its entry durable: a record that a cut takes away
// with its folder was never kept.
func (s *Store) makeDir() error {
	if _, err := os.Stat(s.dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(s.dir))
}

// Drop removes the record of a slot that is about to hold something else. None is
// no error.
func (s *Store) Drop(name device.Slot) error {
	err := os.Remove(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = atomicfile.SyncDir(s.dir)
	}
	if err != nil {
		return fmt.Errorf("forgetting what slot %s held: %w", name, err)
	}
	return nil
}
