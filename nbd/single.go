package nbd

import "context"

// Single is one export as a set of its own, which answers to its name and to
// the empty one.
type Single struct{ Export Export }

// List returns it.
func (s Single) List(context.Context) ([]ExportInfo, error) {
	return []ExportInfo{s.Export.Info()}, nil
}

// Describe returns what it says of itself.
func (s Single) Describe(_ context.Context, name string) (ExportInfo, error) {
	if name != "" && name != s.Export.Name {
		return ExportInfo{}, ErrUnknownExport
	}
	return s.Export.Info(), nil
}

// Open returns it.
func (s Single) Open(_ context.Context, name string) (Export, func(), error) {
	if name != "" && name != s.Export.Name {
		return Export{}, nil, ErrUnknownExport
	}
	return s.Export, func() {}, nil
}
