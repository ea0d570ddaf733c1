package osimage

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

func statement() Statement {
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	return Statement{Channel: "stable", Product: "gateway", Digest: digest.FromString("x"), Version: "1.2", Issued: at, Expires: at.Add(time.Hour)}
}

func TestStatementRoundTrip(t *testing.T) {
	manifest, blobs, err := statement().Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := statement().Encode()
	if err != nil || again.Descriptor.Digest != manifest.Descriptor.Digest {
		t.Errorf("equal statements have the digests %s and %s (%v)", manifest.Descriptor.Digest, again.Descriptor.Digest, err)
	}
	desc, err := StatementConfig(manifest.Content)
	if err != nil || desc.Digest != blobs[0].Descriptor.Digest {
		t.Fatalf("the manifest leads to %+v, %v", desc, err)
	}
	got, err := ParseStatement(blobs[0].Content)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(statement(), got); diff != "" {
		t.Error(diff)
	}
	if _, err := ParseManifest(manifest.Descriptor, manifest.Content); !errors.Is(err, ErrNotOS) {
		t.Errorf("a statement passes for an OS image: %v", err)
	}
}

func TestStatementRefuses(t *testing.T) {
	for want, change := range map[string]func(*Statement){
		`channel ""`:               func(s *Statement) { s.Channel = "" },
		`channel "a/b"`:            func(s *Statement) { s.Channel = "a/b" },
		`product ""`:               func(s *Statement) { s.Product = "" },
		`"" is no sha256`:          func(s *Statement) { s.Digest = "" },
		"must come after":          func(s *Statement) { s.Expires = s.Issued },
		"issued 0001":              func(s *Statement) { s.Issued = time.Time{} },
		`"sha512:ab" is no sha256`: func(s *Statement) { s.Digest = "sha512:ab" },
	} {
		s := statement()
		change(&s)
		if _, _, err := s.Encode(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want %q", err, want)
		}
	}
	for want, raw := range map[string]string{
		"no statement of a channel": `{"artifactType":"application/x"}`, "manifest of a statement": `{`, "the limit is": strings.Repeat(" ", MaxStatement+1),
		"allowed are 1 to": `{"artifactType":"` + ArtifactTypeChannel + `","config":{"mediaType":"` + MediaTypeChannel + `","digest":"` + digest.FromString("").String() + `","size":9999999}}`,
	} {
		if _, err := StatementConfig([]byte(raw)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want ErrInvalid with %q", err, want)
		}
	}
	if _, err := ParseStatement(make([]byte, MaxStatement+1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a huge statement: %v", err)
	}
}

func FuzzParseStatement(f *testing.F) {
	_, blobs, err := statement().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blobs[0].Content)
	f.Add([]byte(`{"channel":"stable","issued":"9999-12-31T23:59:59Z"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := ParseStatement(raw)
		if err != nil {
			return
		}
		_, blobs, err := s.Encode()
		if err != nil {
			t.Fatalf("does not write what it read: %v", err)
		}
		if again, err := ParseStatement(blobs[0].Content); err != nil || !again.Issued.Equal(s.Issued) || again.Digest != s.Digest {
			t.Errorf("does not read what it wrote: %+v, %v", again, err)
		}
	})
}
