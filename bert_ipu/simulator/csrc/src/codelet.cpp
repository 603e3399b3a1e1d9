// Codelet sources: find the vertices, generate the glue, compile, load.
#include "codelet.hpp"

#include <algorithm>
#include <cctype>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <fstream>
#include <functional>
#include <regex>
#include <sstream>
#include <sys/stat.h>
#include <unistd.h>

#include "names.hpp"

namespace popemu {

ToolConfig &toolConfig() {
  static ToolConfig config;
  return config;
}

namespace {

using Text = std::string;

struct VertexSource {
  Text qualifiedName; // with namespaces
  bool isTemplate = false;
  std::vector<Text> instantiations; // "float", "half,true"
  std::vector<Text> fields;
};

[[noreturn]] void fail(const Text &message) {
  throw poplar::graph_construction_error(message);
}

Text readFile(const Text &path) {
  std::ifstream file(path);
  if (!file)
    fail("codelet source " + path + " cannot be read");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Comments and literals become blanks; line breaks stay where they are.
Text withoutComments(const Text &source) {
  Text result = source;
  for (std::size_t i = 0; i < source.size(); ++i) {
    std::size_t end = i;
    if (source.compare(i, 2, "//") == 0)
      end = source.find('\n', i);
    else if (source.compare(i, 2, "/*") == 0)
      end = source.find("*/", i + 2) + 2;
    else if (source[i] == '"') {
      for (end = i + 1; end < source.size() && source[end] != '"'; ++end)
        if (source[end] == '\\')
          ++end;
      ++end;
    } else
      continue;
    end = std::min(end, source.size());
    for (; i < end; ++i)
      if (source[i] != '\n')
        result[i] = ' ';
    --i;
  }
  return result;
}

std::size_t matchingBrace(const Text &source, std::size_t open) {
  int depth = 0;
  for (std::size_t i = open; i < source.size(); ++i) {
    depth += source[i] == '{';
    depth -= source[i] == '}';
    if (depth == 0)
      return i;
  }
  return source.size();
}

Text trimmed(const Text &text) {
  const auto begin = text.find_first_not_of(" \t\r\n");
  if (begin == Text::npos)
    return "";
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

// Names declared by one member declaration without its semicolon.
void addDeclaredNames(Text declaration, std::vector<Text> &names) {
  static const std::regex access("\\b(public|private|protected)\\s*:");
  static const std::regex notAField(
      "^(using|typedef|static|template|friend|enum|struct|class|union|"
      "constexpr)\\b");
  declaration = trimmed(std::regex_replace(declaration, access, " "));
  if (declaration.empty() || declaration.find('(') != Text::npos ||
      std::regex_search(declaration, notAField))
    return;
  int angles = 0;
  Text piece;
  std::vector<Text> pieces;
  for (char c : declaration) {
    angles += (c == '<') - (c == '>');
    if (c == ',' && angles == 0) {
      pieces.push_back(piece);
      piece.clear();
    } else {
      piece += c;
    }
  }
  pieces.push_back(piece);
  static const std::regex name("([A-Za-z_]\\w*)\\s*(=.*)?$");
  for (const Text &p : pieces) {
    std::smatch match;
    const Text line = std::regex_replace(p, std::regex("\\s+"), " ");
    if (std::regex_search(line, match, name))
      names.push_back(match[1]);
  }
}

std::vector<Text> fieldsOf(const Text &body) {
  std::vector<Text> names;
  Text statement;
  for (std::size_t i = 0; i < body.size(); ++i) {
    if (body[i] == '{') {
      const bool isFunction = statement.find('(') != Text::npos;
      i = matchingBrace(body, i);
      if (isFunction)
        statement.clear();
    } else if (body[i] == ';') {
      addDeclaredNames(statement, names);
      statement.clear();
    } else {
      statement += body[i];
    }
  }
  return names;
}

// "unsigned" and "half" as poplar::Type::toString spells them.
Text normalisedArgument(Text argument) {
  argument = trimmed(std::regex_replace(argument, std::regex("\\s+"), " "));
  return argument == "unsigned" ? "unsigned int" : argument;
}

Text normalisedArguments(const Text &arguments) {
  Text result, piece;
  std::istringstream list(arguments);
  while (std::getline(list, piece, ','))
    result += (result.empty() ? "" : ",") + normalisedArgument(piece);
  return result;
}

// The namespaces open at a position.
Text namespaceAt(const Text &source, std::size_t position) {
  static const std::regex opening("\\bnamespace\\s+([\\w:]+)\\s*\\{");
  Text result;
  auto begin = std::sregex_iterator(source.begin(),
                                    source.begin() + long(position), opening);
  for (auto it = begin; it != std::sregex_iterator(); ++it) {
    const std::size_t brace = std::size_t(it->position() + it->length()) - 1;
    if (matchingBrace(source, brace) > position)
      result += (*it)[1].str() + "::";
  }
  return result;
}

std::vector<VertexSource> parseVertices(const Text &source) {
  static const std::regex head(
      "(template\\s*<[^{;]*>\\s*)?\\b(class|struct)\\s+"
      "(\\[\\[[^\\]]*\\]\\]\\s*|__attribute__\\s*\\(\\(.*?\\)\\)\\s*)?"
      "(\\w+)\\s*(final\\s*)?:\\s*(public\\s+)?[\\w:]*Vertex\\w*"
      "(\\s*<[^{]*>)?\\s*\\{");
  std::vector<VertexSource> vertices;
  for (auto it = std::sregex_iterator(source.begin(), source.end(), head);
       it != std::sregex_iterator(); ++it) {
    const std::size_t open = std::size_t(it->position() + it->length()) - 1;
    const std::size_t close = matchingBrace(source, open);
    VertexSource vertex;
    const Text name = (*it)[4];
    vertex.isTemplate = (*it)[1].matched;
    vertex.qualifiedName =
        namespaceAt(source, std::size_t(it->position())) + name;
    vertex.fields = fieldsOf(source.substr(open + 1, close - open - 1));
    const std::regex instance("\\btemplate\\s+(class|struct)\\s+(\\w+::)*" +
                              name + "\\s*<([^;]*)>\\s*;");
    for (auto i = std::sregex_iterator(source.begin(), source.end(), instance);
         i != std::sregex_iterator(); ++i)
      vertex.instantiations.push_back((*i)[3]);
    vertices.push_back(std::move(vertex));
  }
  return vertices;
}

void addGlue(std::ostringstream &glue, std::ostringstream &table,
             const VertexSource &vertex, const Text &arguments,
             std::size_t index) {
  const Text type =
      vertex.qualifiedName + (arguments.empty() ? "" : "<" + arguments + ">");
  const Text shown =
      vertex.qualifiedName +
      (arguments.empty() ? "" : "<" + normalisedArguments(arguments) + ">");
  const Text id = std::to_string(index);
  glue << "using V" << id << " = " << type << ";\n"
       << "const popemu::FieldDescriptor fields" << id << "[] = {\n";
  for (const Text &field : vertex.fields)
    glue << "    popemu::describeField<V" << id << ", decltype(V" << id
         << "::" << field << "), &V" << id << "::" << field << ">(\"" << field
         << "\"),\n";
  glue << "    {nullptr, popemu::FieldDirection::State, 0, 0, 0, nullptr}};\n";
  table << "    popemu::describeVertex<V" << id << ">(\"" << shown
        << "\", fields" << id << ", " << vertex.fields.size() << "),\n";
}

Text glueFor(const Text &path, const Text &source) {
  std::ostringstream glue, table;
  glue << "#include <popemu/describe_vertex.hpp>\n"
       << "#include \"" << path << "\"\n"
       << "namespace {\n";
  std::size_t index = 0;
  for (const VertexSource &vertex : parseVertices(source)) {
    if (!vertex.isTemplate)
      addGlue(glue, table, vertex, "", index++);
    for (const Text &arguments : vertex.instantiations)
      addGlue(glue, table, vertex, arguments, index++);
  }
  if (index == 0)
    fail("codelet source " + path +
         " defines no vertex: a class derived from poplar::Vertex or "
         "MultiVertex, and for a template an explicit instantiation");
  glue << "const popemu::VertexDescriptor vertices[] = {\n"
       << table.str() << "};\n} // namespace\n"
       << "extern \"C\" const popemu::VertexDescriptor *popemu_vertices("
          "std::size_t *count, unsigned *abi) {\n"
       << "  *count = " << index << ";\n"
       << "  *abi = popemu::vertexAbiVersion;\n  return vertices;\n}\n";
  return glue.str();
}

Text quoted(const Text &path) {
  Text result = "'";
  for (char c : path)
    result += c == '\'' ? Text("'\\''") : Text(1, c);
  return result + "'";
}

// Runs a command; returns its output, and whether it succeeded.
bool execute(const Text &command, Text &output) {
  FILE *pipe = popen((command + " 2>&1").c_str(), "r");
  if (!pipe)
    fail("cannot start " + command);
  char buffer[4096];
  output.clear();
  while (std::size_t n = fread(buffer, 1, sizeof(buffer), pipe))
    output.append(buffer, n);
  return pclose(pipe) == 0;
}

// Inline assembly and IPU intrinsics that survive preprocessing cannot run
// here. Code under #ifdef __IPU__ does not survive, and is welcome.
void refuseForeignCode(const Text &command) {
  Text preprocessed;
  if (!execute(command + " -E", preprocessed))
    return; // the compile that follows says what is wrong, and where
  static const std::regex marker("^# (\\d+) \"([^\"]*)\".*");
  static const std::regex foreign(
      "\\b(asm|__asm__|__asm|__builtin_ipu_\\w+|__builtin_colossus_\\w+)\\b");
  std::istringstream lines(withoutComments(preprocessed));
  std::istringstream original(preprocessed);
  Text line, raw, file;
  long number = 0;
  while (std::getline(lines, line) && std::getline(original, raw)) {
    std::smatch match;
    if (std::regex_match(raw, match, marker)) {
      number = std::stol(match[1]) - 1;
      file = match[2];
      continue;
    }
    ++number;
    const bool ours = file.compare(0, 5, "/usr/") != 0;
    if (ours && std::regex_search(line, match, foreign))
      fail(file + ":" + std::to_string(number) + ": " + match[1].str() +
           " is for the IPU and cannot run on this machine; give the vertex "
           "a plain C++ path under #ifndef __IPU__");
  }
}

struct LoadedCodelets {
  const VertexDescriptor *vertices;
  std::size_t count;
};

std::map<Text, LoadedCodelets> &loadedCodelets() {
  static std::map<Text, LoadedCodelets> loaded;
  return loaded;
}

Text digestOf(const Text &text) {
  char hex[17];
  std::snprintf(hex, sizeof(hex), "%016zx", std::hash<Text>()(text));
  return hex;
}

void writeFile(const Text &path, const Text &text) {
  const Text part = path + "." + std::to_string(getpid()) + ".part";
  std::ofstream file(part);
  file << text;
  file.close();
  if (!file || rename(part.c_str(), path.c_str()) != 0)
    fail("cannot write " + path);
}

Text cacheFolder() {
  Text folder = toolConfig().cache;
  if (folder.empty()) {
    const char *tmp = std::getenv("TMPDIR");
    folder = Text(tmp ? tmp : "/tmp") + "/bert_ipu_codelets." +
             std::to_string(getuid());
  }
  mkdir(folder.c_str(), 0700);
  return folder;
}

// The contents of the files that a list of the compiler's -MM names.
Text contentsOfListed(const Text &list) {
  std::ifstream names(list);
  std::ostringstream contents;
  Text name;
  while (names >> name) {
    std::ifstream file(name);
    if (file)
      contents << name << "\n" << file.rdbuf();
  }
  return contents.str();
}

// Compiled once per source, flags, and contents of all it includes.
Text compile(const Text &path, const Text &source, const Text &flags) {
  const ToolConfig &tools = toolConfig();
  const Text stem = cacheFolder() + "/codelet_" +
                    digestOf(path + "\n" + source + "\n" + flags);
  const Text list = stem + ".d";
  const auto libraryOfToday = [&] {
    return stem + "_" + digestOf(contentsOfListed(list)) + ".so";
  };
  const auto isThere = [](const Text &file) {
    return access(file.c_str(), R_OK) == 0;
  };
  if (isThere(list) && isThere(libraryOfToday()))
    return libraryOfToday();
  writeFile(stem + ".cpp", glueFor(path, withoutComments(source)));
  const Text command =
      quoted(tools.compiler) + " -std=c++17 -O2 -fPIC -fno-math-errno -w -I" +
      quoted(tools.include) + " " + flags + " " + quoted(stem + ".cpp");
  refuseForeignCode(command);
  Text output;
  if (execute(command + " -MM", output))
    writeFile(list, output);
  const Text library = libraryOfToday();
  const Text part = library + "." + std::to_string(getpid()) + ".part";
  if (!execute(command + " -shared -o " + quoted(part), output))
    fail("codelet source " + path + " does not compile:\n" + output);
  if (rename(part.c_str(), library.c_str()) != 0)
    fail("cannot write " + library);
  return library;
}

void load(const Text &library) {
  if (loadedCodelets().count(library))
    return;
  void *handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle)
    fail(Text("cannot load compiled codelets: ") + dlerror());
  using Describe = const VertexDescriptor *(*)(std::size_t *, unsigned *);
  auto describe = reinterpret_cast<Describe>(dlsym(handle, "popemu_vertices"));
  std::size_t count = 0;
  unsigned abi = 0;
  const VertexDescriptor *vertices =
      describe ? describe(&count, &abi) : nullptr;
  if (abi != vertexAbiVersion)
    fail(library + " was compiled for another version of the simulator");
  loadedCodelets()[library] = {vertices, count};
}

} // namespace

std::string loadCodelets(const std::string &path, const std::string &flags) {
  char resolved[PATH_MAX];
  const Text full = realpath(path.c_str(), resolved) ? resolved : path;
  if (full.size() > 3 && (full.substr(full.size() - 2) == ".S" ||
                          full.substr(full.size() - 3) == ".gp"))
    fail("codelets in " + path +
         " are assembly or precompiled for the IPU; give the C++ source");
  const Text library = compile(full, readFile(full), flags);
  load(library);
  return library;
}

std::string loadCodeletText(const std::string &text, const std::string &flags) {
  const Text path = cacheFolder() + "/source_" + digestOf(text) + ".cpp";
  writeFile(path, text);
  return loadCodelets(path, flags);
}

const VertexDescriptor &findVertexType(const std::vector<std::string> &codelets,
                                       const std::string &name) {
  std::vector<Text> known;
  for (const Text &library : codelets) {
    const LoadedCodelets &loaded = loadedCodelets().at(library);
    for (std::size_t i = 0; i < loaded.count; ++i) {
      if (name == loaded.vertices[i].name)
        return loaded.vertices[i];
      known.push_back(loaded.vertices[i].name);
    }
  }
  fail("no vertex " + name + " is known to the graph; " +
       nearestNames(name, known) +
       " (a template needs an explicit instantiation)");
}

} // namespace popemu
