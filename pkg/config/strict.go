package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// document is one parsed YAML file, for messages that say where and what is
// allowed there.
type document struct {
	name string
	root ast.Node // nil for an empty file
}

func parse(name string, data []byte) (document, error) {
	d := document{name: name}
	f, err := parser.ParseBytes(data, 0)
	if err != nil {
		return d, d.explain(err)
	}
	if len(f.Docs) > 1 {
		return d, d.complain(f.Docs[1].Start, "a second document begins here; expected is one")
	}
	if len(f.Docs) == 1 {
		d.root = f.Docs[0].Body
	}
	return d, nil
}

// complain is an error at a place: file:line:column: text.
func (d document) complain(at *token.Token, text string) error {
	return d.blame(at, errors.New(text))
}

// blame is complain with a cause.
func (d document) blame(at *token.Token, err error) error {
	if at == nil || at.Position == nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, d.name, err)
	}
	return fmt.Errorf("%w: %s:%d:%d: %w", ErrInvalid, d.name, at.Position.Line, at.Position.Column, err)
}

// explain gives an error of the YAML library the same form.
func (d document) explain(err error) error {
	var located yaml.Error
	if errors.As(err, &located) {
		return d.complain(located.GetToken(), located.GetMessage())
	}
	return d.complain(nil, err.Error())
}

// at is the place of a key such as health.deadline or env[0], as far down as the
// file has it.
func (d document) at(key string) *token.Token {
	if d.root == nil {
		return nil
	}
	for ; key != ""; key = key[:max(strings.LastIndexAny(key, ".["), 0)] {
		path, err := yaml.PathString("$." + key)
		if err != nil {
			return nil
		}
		if node, err := path.FilterNode(d.root); err == nil && node != nil {
			return node.GetToken()
		}
	}
	return nil
}

// has reports whether the file has a key, be it without a value.
func (d document) has(key string) bool {
	path, err := yaml.PathString("$." + key)
	if err != nil || d.root == nil {
		return false
	}
	node, err := path.FilterNode(d.root)
	return err == nil && node != nil
}

// check compares a node with the type that it is to be decoded into: no unknown
// keys, no value of another kind. key names the node in messages.
func (d document) check(node ast.Node, t reflect.Type, key string) error {
	if anchor, ok := node.(*ast.AnchorNode); ok {
		node = anchor.Value
	}
	switch node.(type) {
	case nil, *ast.NullNode, *ast.AliasNode:
		return nil
	}
	if value, ok := reflect.New(t).Interface().(spelled); ok {
		return d.spelled(node, value, key)
	}
	switch t.Kind() {
	case reflect.Struct:
		return d.mapping(node, t, key)
	case reflect.Slice:
		list, ok := node.(*ast.SequenceNode)
		if !ok {
			return d.complain(node.GetToken(), key+": expected is a list, as in [a, b]")
		}
		for i, value := range list.Values {
			if err := d.check(value, t.Elem(), fmt.Sprintf("%s[%d]", key, i)); err != nil {
				return err
			}
		}
		return nil
	case reflect.Int:
		if _, ok := node.(*ast.IntegerNode); !ok {
			return d.complain(node.GetToken(), key+": expected is a whole number")
		}
		return nil
	}
	return d.scalar(node, key, "text")
}

func (d document) scalar(node ast.Node, key, what string) error {
	if _, ok := node.(ast.ScalarNode); !ok {
		return d.complain(node.GetToken(), key+": expected is "+what)
	}
	return nil
}

// spelled is a scalar with a decoder of its own.
type spelled interface {
	yaml.BytesUnmarshaler
	// spelling says what is expected, with an example.
	spelling() string
}

// spelled tries the value's own decoder, whose error has no place.
func (d document) spelled(node ast.Node, value spelled, key string) error {
	if err := d.scalar(node, key, value.spelling()); err != nil {
		return err
	}
	if err := value.UnmarshalYAML([]byte(node.String())); err != nil {
		return d.blame(node.GetToken(), fmt.Errorf("%s: %w", key, err))
	}
	return nil
}

func (d document) mapping(node ast.Node, t reflect.Type, key string) error {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		fields[name] = t.Field(i).Type
	}
	var names []string
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	allowed := "allowed here: " + strings.Join(names, ", ")
	m, ok := node.(ast.MapNode)
	if !ok {
		if key == "" {
			key = "the file"
		}
		return d.complain(node.GetToken(), key+": expected is a mapping; "+allowed)
	}
	for entry := m.MapRange(); entry.Next(); {
		at := entry.Key().GetToken()
		field, ok := fields[at.Value]
		if !ok {
			return d.complain(at, fmt.Sprintf("unknown key %q; %s", at.Value, allowed))
		}
		if err := d.check(entry.Value(), field, strings.TrimPrefix(key+"."+at.Value, ".")); err != nil {
			return err
		}
	}
	return nil
}
