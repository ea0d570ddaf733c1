package osimage

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// Unmarshal is json.Unmarshal for what people sign and machines decide on. It refuses
// what other readers of JSON may understand differently: a key that is there twice, and
// one that differs from a known key in capitals only, which this library takes for it.
// So who looks at a config with another tool before he signs it sees what a machine
// sees. Keys that are not known are passed over.
func Unmarshal(raw []byte, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return err
	}
	return unambiguous(raw, reflect.TypeOf(v))
}

// unambiguous checks the keys of all objects of valid JSON that t has fields for.
func unambiguous(raw []byte, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	fields := map[string]reflect.Type{}
	switch {
	case bytes.HasPrefix(raw, []byte("null")), reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()), reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		return nil
	case t.Kind() == reflect.Struct:
		collect(t, fields)
	case t.Kind() == reflect.Map, t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
	default:
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil { // what opens it
		return err
	}
	seen := map[string]bool{}
	for dec.More() {
		of := reflect.Type(nil)
		if t.Kind() == reflect.Slice {
			of = t.Elem()
		} else {
			token, err := dec.Token()
			if err != nil {
				return err
			}
			key, _ := token.(string)
			if of, err = known(key, fields); err != nil {
				return err
			}
			if t.Kind() == reflect.Map {
				of = t.Elem()
			}
			if seen[key] {
				return fmt.Errorf("the key %q is there twice", key)
			}
			seen[key] = true
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		if of == nil {
			continue
		}
		if err := unambiguous(value, of); err != nil {
			return err
		}
	}
	return nil
}

// known is the type of a field by its key; nil if there is none.
func known(key string, fields map[string]reflect.Type) (reflect.Type, error) {
	if t := fields[key]; t != nil {
		return t, nil
	}
	for name := range fields {
		if strings.EqualFold(name, key) {
			return nil, fmt.Errorf("the key %q is written %q", key, name)
		}
	}
	return nil, nil
}

// collect finds the fields of a struct by their keys.
func collect(t reflect.Type, fields map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			collect(f.Type, fields)
		case name == "-" || !f.IsExported():
		case name == "":
			fields[f.Name] = f.Type
		default:
			fields[name] = f.Type
		}
	}
}
