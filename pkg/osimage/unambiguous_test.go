package osimage

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What two readers of JSON may read in two ways, nobody can sign knowingly.
func TestUnmarshalRefusesWhatIsAmbiguous(t *testing.T) {
	type thing struct {
		Size  int               `json:"size"`
		Inner *Rootfs           `json:"inner"`
		List  []Package         `json:"list"`
		Notes map[string]string `json:"notes"`
		Any   map[string]any    `json:"any"`
		ocispec.Platform
	}
	for text, want := range map[string]string{
		`{"size":1,"size":2}`:                   `the key "size" is there twice`,
		`{"size":1,"Size":2}`:                   `the key "Size" is written "size"`,
		`{"SIZE":1}`:                            `the key "SIZE" is written "size"`,
		`{"ſize":1}`:                            `is written "size"`,
		`{"inner":{"digest":"a","digest":"b"}}`: `"digest" is there twice`,
		`{"inner":{"Digest":"a"}}`:              `is written "digest"`,
		`{"list":[{"name":"a"},{"name":"a","Version":""}]}`: `is written "version"`,
		`{"list":[{"name":"a","name":"b"}]}`:                `"name" is there twice`,
		`{"notes":{"a":"1","a":"2"}}`:                       `"a" is there twice`,
		`{"any":{"a":1,"a":2}}`:                             `"a" is there twice`,
		`{"os":"a","OS":"b"}`:                               `is written "os"`,
		`{"x":1,"x":2}`:                                     `"x" is there twice`,
		`{"size":1}{"size":2}`:                              "invalid character",
		`{"size":1} x`:                                      "invalid character",
		`{"size":1e400}`:                                    "cannot unmarshal",
	} {
		var v thing
		if err := Unmarshal([]byte(text), &v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	for _, text := range []string{
		`{}`, `null`, ` {"size":1,"inner":null,"list":null,"notes":null} `, `{"notes":{"a":"1","A":"2","Size":"3"},"os":"x"}`, `{"x":{"y":1,"y":2}}`, `{"list":[]}`,
	} {
		var v thing
		if err := Unmarshal([]byte(text), &v); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Each of the signed documents is read so.
func TestSignedDocumentsAreUnambiguous(t *testing.T) {
	desc, manifest, config := sample(t, nil)
	if _, err := Parse(desc, manifest, config); err != nil {
		t.Fatal(err)
	}
	again := func(raw []byte, key string) []byte {
		t.Helper()
		var all map[string]json.RawMessage
		if err := json.Unmarshal(raw, &all); err != nil || all[key] == nil {
			t.Fatalf("%s: %v", raw, err)
		}
		return append([]byte(`{"`+key+`":`+string(all[key])+`,`), raw[1:]...)
	}
	for name, parse := range map[string]func() error{
		"manifest": func() error {
			raw := again(manifest, "layers")
			_, err := ParseManifest(ocispec.Descriptor{Digest: digest.FromBytes(raw)}, raw)
			return err
		},
		"config": func() error {
			raw := again(config, "product")
			changed := strings.NewReplacer(digest.FromBytes(config).String(), digest.FromBytes(raw).String()).Replace(string(manifest))
			_, err := Parse(ocispec.Descriptor{Digest: digest.FromString(changed)}, []byte(changed), raw)
			return err
		},
		"statement": func() error {
			raw, err := json.Marshal(Statement{Channel: "stable", Product: "gateway"})
			if err != nil {
				t.Fatal(err)
			}
			_, err = ParseStatement(again(raw, "digest"))
			return err
		},
		"manifest of a statement": func() error {
			_, err := StatementConfig(again(manifest, "config"))
			return err
		},
	} {
		if err := parse(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "is there twice") {
			t.Errorf("%s: %v, want ErrInvalid for a key that is there twice", name, err)
		}
	}
}
