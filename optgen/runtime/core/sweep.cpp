// The sweep over all tensors of a step, which sweep.py describes: one call for all of them.

#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/object_ptr.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

// Placeholders for values without a form.
constexpr std::int64_t kNoTensor = -1;
constexpr std::int64_t kNoMemory = -2;

// Tensors that one stage looks at before the next one does: what they are made of lies in many places, which are asked
// for ahead, so that memory brings them side by side and not one after the other.
constexpr std::size_t kBatch = 128;
constexpr std::size_t kLine = 64;

void ask_for(const void* place, std::size_t bytes = 1) {
    for (std::size_t offset = 0; offset < bytes; offset += kLine) {
        __builtin_prefetch(static_cast<const char*>(place) + offset);
    }
}

bool is_dense(at::TensorImpl& tensor) {
    return tensor.layout() == at::kStrided && tensor.has_storage();
}

void add_form(at::TensorImpl& tensor, std::vector<std::int64_t>& to) {
    if (!is_dense(tensor)) {
        to.push_back(kNoMemory);
        to.push_back(reinterpret_cast<std::int64_t>(&tensor));
        return;
    }
    to.push_back(reinterpret_cast<std::int64_t>(tensor.mutable_data()));
    const auto device = tensor.device();
    const auto kind = c10::typeMetaToScalarType(tensor.dtype());
    to.push_back(static_cast<std::int64_t>(kind) | static_cast<std::int64_t>(tensor.is_contiguous()) << 8 |
                 static_cast<std::int64_t>(tensor.is_neg()) << 9 |
                 static_cast<std::int64_t>(device.type()) << 16 |
                 static_cast<std::int64_t>(static_cast<std::uint8_t>(device.index())) << 24 | tensor.dim() << 32);
    for (const auto size : tensor.sizes()) {
        to.push_back(size);
    }
}

// Calls `use` with each item's tensor, or with nullptr for what is none.
template <typename Use>
void for_each_tensor(PyObject* const* items, std::size_t count, Use use) {
    at::TensorImpl* tensors[kBatch];
    for (std::size_t begin = 0; begin < count; begin += kBatch) {
        const std::size_t size = std::min(kBatch, count - begin);
        for (std::size_t i = 0; i < size; ++i) {
            ask_for(items[begin + i], sizeof(PyObject) + sizeof(at::Tensor));
        }
        for (std::size_t i = 0; i < size; ++i) {
            PyObject* item = items[begin + i];
            tensors[i] = THPVariable_Check(item) ? THPVariable_Unpack(item).unsafeGetTensorImpl() : nullptr;
            if (tensors[i] != nullptr) {
                ask_for(tensors[i], sizeof(at::TensorImpl));
            }
        }
        for (std::size_t i = 0; i < size; ++i) {
            if (tensors[i] != nullptr && tensors[i]->has_storage()) {
                ask_for(tensors[i]->unsafe_storage().unsafeGetStorageImpl(), kLine);
            }
        }
        for (std::size_t i = 0; i < size; ++i) {
            use(begin + i, tensors[i]);
        }
    }
}

PyObject* as_bytes(const std::vector<std::int64_t>& numbers) {
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(numbers.data()),
                                     static_cast<Py_ssize_t>(numbers.size() * sizeof(std::int64_t)));
}

struct Items {
    PyObject* const* begin;
    std::size_t count;
};

Items items_of(PyObject* list) {
    TORCH_CHECK_TYPE(PyList_Check(list), "a list is wanted, not a ", Py_TYPE(list)->tp_name);
    return {reinterpret_cast<PyListObject*>(list)->ob_item, static_cast<std::size_t>(PyList_GET_SIZE(list))};
}

// As for_each_tensor does, of items that are all tensors.
template <typename Use>
void for_tensors_only(const Items& items, Use use) {
    for_each_tensor(items.begin, items.count, [&](std::size_t i, at::TensorImpl* tensor) {
        TORCH_CHECK_TYPE(tensor != nullptr, "item ", i, " is a ", Py_TYPE(items.begin[i])->tp_name, ", not a tensor");
        use(i, *tensor);
    });
}

// Subclasses may have a `grad` of their own.
PyObject* gradient(PyObject* param) {
    if (!THPVariable_CheckExact(param)) {
        return PyObject_GetAttrString(param, "grad");
    }
    const at::Tensor& grad = THPVariable_Unpack(param).grad();
    if (!grad.defined()) {
        Py_RETURN_NONE;
    }
    return THPVariable_Wrap(grad);
}

PyObject* gradients(PyObject*, PyObject* params) {
    HANDLE_TH_ERRORS
    const Items items = items_of(params);
    THPObjectPtr result(PyList_New(static_cast<Py_ssize_t>(items.count)));
    for (std::size_t i = 0; result && i < items.count; ++i) {
        PyObject* grad = gradient(items.begin[i]);
        if (grad == nullptr) {
            return nullptr;
        }
        PyList_SET_ITEM(result.get(), static_cast<Py_ssize_t>(i), grad);
    }
    return result.release();
    END_HANDLE_TH_ERRORS
}

PyObject* dtypes(PyObject*, PyObject* tensors) {
    HANDLE_TH_ERRORS
    const Items items = items_of(tensors);
    THPObjectPtr result(PyList_New(static_cast<Py_ssize_t>(items.count)));
    if (!result) {
        return nullptr;
    }
    for_tensors_only(items, [&](std::size_t i, at::TensorImpl& tensor) {
        auto* dtype = reinterpret_cast<PyObject*>(torch::getTHPDtype(c10::typeMetaToScalarType(tensor.dtype())));
        Py_INCREF(dtype);
        PyList_SET_ITEM(result.get(), static_cast<Py_ssize_t>(i), dtype);
    });
    return result.release();
    END_HANDLE_TH_ERRORS
}

PyObject* identities(PyObject*, PyObject* objects) {
    HANDLE_TH_ERRORS
    const Items items = items_of(objects);
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(items.begin),
                                     static_cast<Py_ssize_t>(items.count * sizeof(PyObject*)));
    END_HANDLE_TH_ERRORS
}

// The values of all entries, one entry after the other.
std::vector<PyObject*> values_of(const Items& entries) {
    std::vector<PyObject*> values;
    values.reserve(entries.count * 5);
    for (std::size_t begin = 0; begin < entries.count; begin += kBatch) {
        const std::size_t end = std::min(begin + kBatch, entries.count);
        for (std::size_t i = begin; i < end; ++i) {
            ask_for(entries.begin[i]);
        }
        for (std::size_t i = begin; i < end; ++i) {
            const char* kind = Py_TYPE(entries.begin[i])->tp_name;
            TORCH_CHECK_TYPE(PyDict_Check(entries.begin[i]), "entry ", i, " is a ", kind, ", not a dict");
            ask_for(reinterpret_cast<PyDictObject*>(entries.begin[i])->ma_keys, 3 * kLine);
        }
        for (std::size_t i = begin; i < end; ++i) {
            PyObject *key = nullptr, *value = nullptr;
            Py_ssize_t position = 0;
            while (PyDict_Next(entries.begin[i], &position, &key, &value)) {
                values.push_back(value);
            }
        }
    }
    return values;
}

PyObject* facts(PyObject*, PyObject* const* arguments, Py_ssize_t given) {
    HANDLE_TH_ERRORS
    TORCH_CHECK_TYPE(given == 2, "facts takes tensors and entries, not ", given, " arguments");
    const Items tensors = items_of(arguments[0]);
    const std::vector<PyObject*> values = values_of(items_of(arguments[1]));
    std::vector<std::int64_t> found;
    found.reserve(4 * (tensors.count + values.size()));
    for_tensors_only(tensors, [&](std::size_t, at::TensorImpl& tensor) { add_form(tensor, found); });
    for_each_tensor(values.data(), values.size(), [&](std::size_t, at::TensorImpl* tensor) {
        if (tensor != nullptr) {
            add_form(*tensor, found);
        } else {
            found.push_back(kNoTensor);
        }
    });
    return as_bytes(found);
    END_HANDLE_TH_ERRORS
}

PyObject* addresses(PyObject*, PyObject* const* arguments, Py_ssize_t given) {
    HANDLE_TH_ERRORS
    TORCH_CHECK_TYPE(given == 2, "addresses takes tensors and others like them, not ", given, " arguments");
    const Items items = items_of(arguments[0]), like = items_of(arguments[1]);
    TORCH_CHECK_VALUE(items.count == like.count, items.count, " tensors, and ", like.count, " like them");
    std::vector<at::TensorImpl*> partners(like.count);
    for_tensors_only(like, [&](std::size_t i, at::TensorImpl& tensor) { partners[i] = &tensor; });
    std::vector<std::int64_t> found;
    found.reserve(items.count);
    bool readable = true;
    for_tensors_only(items, [&](std::size_t i, at::TensorImpl& tensor) {
        readable = readable && is_dense(tensor) && tensor.is_contiguous() && !tensor.is_neg() &&
                   tensor.sizes() == partners[i]->sizes();
        if (readable) {
            found.push_back(reinterpret_cast<std::int64_t>(tensor.data()));
        }
    });
    if (!readable) {
        Py_RETURN_NONE;
    }
    return as_bytes(found);
    END_HANDLE_TH_ERRORS
}

PyObject* mark_changed(PyObject*, PyObject* tensors) {
    HANDLE_TH_ERRORS
    for_tensors_only(items_of(tensors), [](std::size_t, at::TensorImpl& tensor) {
        if (!tensor.is_inference()) {
            tensor.bump_version();
        }
    });
    Py_RETURN_NONE;
    END_HANDLE_TH_ERRORS
}

PyMethodDef methods[] = {
    {"gradients", gradients, METH_O, nullptr},
    {"dtypes", dtypes, METH_O, nullptr},
    {"identities", identities, METH_O, nullptr},
    {"facts", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(facts)), METH_FASTCALL, nullptr},
    {"addresses", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(addresses)), METH_FASTCALL, nullptr},
    {"mark_changed", mark_changed, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "sweep", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_sweep() { return PyModule_Create(&module); }
